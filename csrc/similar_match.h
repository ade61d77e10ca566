// Are two texts at least so similar? The ratio is that of Python's difflib.SequenceMatcher(None, a, b) with its default autojunk:
// find the longest common block, then do the same to its left and to its right; the ratio is twice the letters in blocks over all
// letters. In a text b of 200 letters or more, letters that make up over a hundredth of it start no block, they only prolong one.
// That rule makes the ratio depend on the order of the two texts, and leaves no bound but the ones below.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace similar {

using i32 = int32_t;
using i64 = int64_t;

constexpr i32 kAutojunkFrom = 200;

// Letters are dense numbers from 0.
struct Text {
  const i32* letters;
  i32 length;
};

// The fewest letters in blocks that give a ratio of at least `threshold`, found with the very division that decides in Python.
inline i64 needed_letters(i64 both_lengths, double threshold) {
  const auto reaches = [&](i64 letters) { return 2.0 * double(letters) / double(both_lengths) >= threshold; };
  i64 needed = i64(threshold * double(both_lengths) / 2.0);
  while (needed > 0 && reaches(needed - 1)) --needed;
  while (!reaches(needed)) ++needed;
  return needed;
}

class Matcher {
 public:
  Matcher(i64 alphabet, i64 longest)
      : head_(size_t(alphabet), kNowhere), count_(size_t(alphabet), 0), next_(size_t(longest)) {
    for (auto& runs : runs_) runs.resize(size_t(longest) + 1);
  }

  // Whether the blocks common to a and b hold at least `needed` letters; stops as soon as that is certain either way.
  bool reaches(const Text& a, const Text& b, i64 needed) {
    index(b);
    const bool found = count_blocks(a, b, needed);
    for (i32 j = 0; j < b.length; ++j) head_[size_t(b.letters[j])] = kNowhere;
    return found;
  }

 private:
  static constexpr i32 kNowhere = -1;

  struct Range {
    i32 a_begin, a_end, b_begin, b_end;
    i64 most() const { return std::min(a_end - a_begin, b_end - b_begin); }
  };
  struct Block {
    i32 a, b, size;
  };
  // How long the block is that ends at one place of b; of value in the row of a that it is stamped with, so that rows need no clearing.
  struct Run {
    i64 row = 0;
    i32 size = 0;
  };

  // head_: the first place in b of each letter that may start a block; next_: the next place with the same letter.
  void index(const Text& b) {
    for (i32 j = b.length - 1; j >= 0; --j) {
      const size_t letter = size_t(b.letters[j]);
      next_[size_t(j)] = head_[letter];
      head_[letter] = j;
      ++count_[letter];
    }
    const i32 popular = b.length >= kAutojunkFrom ? b.length / 100 + 1 : b.length;
    for (i32 j = 0; j < b.length; ++j) {
      const size_t letter = size_t(b.letters[j]);
      if (count_[letter] > popular) head_[letter] = kNowhere;
      if (next_[size_t(j)] == kNowhere) count_[letter] = 0;  // its last place: the next text starts from zero
    }
  }

  bool count_blocks(const Text& a, const Text& b, i64 needed) {
    pending_.assign(1, {0, a.length, 0, b.length});
    i64 matched = 0, possible = pending_.back().most();
    while (matched < needed) {
      if (matched + possible < needed || pending_.empty()) return false;
      const Range range = pending_.back();
      pending_.pop_back();
      possible -= range.most();
      const Block block = longest_block(a, b, range);
      if (block.size == 0) continue;
      matched += block.size;
      const Range left{range.a_begin, block.a, range.b_begin, block.b};
      const Range right{block.a + block.size, range.a_end, block.b + block.size, range.b_end};
      for (const Range& part : {left, right}) {
        if (part.most() == 0) continue;
        possible += part.most();
        pending_.push_back(part);
      }
    }
    return true;
  }

  // The longest block that holds a letter which may start one, earliest in a, then in b; then prolonged by whatever letters agree.
  Block longest_block(const Text& a, const Text& b, const Range& range) {
    Block best{range.a_begin, range.b_begin, 0};
    ++row_;  // nothing before the range counts
    for (i32 i = range.a_begin; i < range.a_end; ++i) {
      const i64 before = row_++;
      const std::vector<Run>& above = runs_[before & 1];
      std::vector<Run>& runs = runs_[row_ & 1];
      for (i32 j = head_[size_t(a.letters[i])]; j != kNowhere && j < range.b_end; j = next_[size_t(j)]) {
        if (j < range.b_begin) continue;
        const Run& run = above[size_t(j)];  // of the block that ends in (i - 1, j - 1)
        const i32 size = (run.row == before ? run.size : 0) + 1;
        runs[size_t(j) + 1] = {row_, size};
        if (size > best.size) best = {i - size + 1, j - size + 1, size};
      }
    }
    while (best.a > range.a_begin && best.b > range.b_begin && a.letters[best.a - 1] == b.letters[best.b - 1]) {
      --best.a, --best.b, ++best.size;
    }
    while (best.a + best.size < range.a_end && best.b + best.size < range.b_end &&
           a.letters[best.a + best.size] == b.letters[best.b + best.size]) {
      ++best.size;
    }
    return best;
  }

  std::vector<i32> head_, count_, next_;
  std::vector<Run> runs_[2];
  std::vector<Range> pending_;
  i64 row_ = 0;
};

}  // namespace similar
