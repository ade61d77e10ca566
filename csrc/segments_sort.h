// Brings rows with equal labels together: a stable radix sort of any number of 64-bit keys.
//
// Keys are packed, less their minimum and in as few bits as they need, above the number of the row in one 64-bit word; what is sorted is
// that word alone. Labels of real batches are small numbers, so one round of two or three passes does; keys that need more bits take
// more rounds. Stability makes the result one and the same for any number of threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace gigpo_segments {

using i64 = int64_t;
using u64 = uint64_t;

constexpr i64 kSortGrain = i64(1) << 16;  // rows below which another thread does not pay
constexpr int kDigit = 9;                 // most bits of a pass: more buckets than this no longer stay in the first-level cache

using Words = std::unique_ptr<u64[]>;

// Some bits of one key, at some place of the packed word.
struct Field {
  const i64* key;
  u64 low;  // the smallest value of the key
  int shift;
  int width;
};

struct Round {
  std::vector<Field> fields;  // least important first
  int width = 0;
  int label_width = 0;  // of these, the bits that labels take, at the top
};

inline int bit_width(u64 value) {
  return value == 0 ? 0 : 64 - __builtin_clzll(value);
}

inline u64 lowest_bits(int width) {
  return width >= 64 ? ~u64(0) : (u64(1) << width) - 1;
}

// The rounds that sort by `keys`, the last most important and those from number `first_label` on labels, with `room` bits in a word.
inline std::vector<Round> plan(const std::vector<const i64*>& keys, size_t first_label, i64 rows, int room) {
  std::vector<Round> rounds(1);
  for (size_t k = 0; k < keys.size(); ++k) {
    const i64* key = keys[k];
    i64 smallest = key[0], largest = key[0];
    for (i64 row = 1; row < rows; ++row) smallest = std::min(smallest, key[row]), largest = std::max(largest, key[row]);
    const u64 low = u64(smallest);
    const int width = bit_width(u64(largest) - low);
    for (int done = 0; done < width;) {
      if (rounds.back().width == room) rounds.emplace_back();
      Round& round = rounds.back();
      const int taken = std::min(width - done, room - round.width);
      round.fields.push_back({key, low, done, taken});
      round.width += taken;
      if (k >= first_label) round.label_width += taken;
      done += taken;
    }
  }
  return rounds;
}

// One stable pass over the bits [shift, shift + width) of `from` into `to`; false (and `to` untouched) where all of them are equal.
inline bool radix_pass(const u64* from, u64* to, i64 rows, int shift, int width, i64 chunks) {
  const size_t buckets = size_t(1) << width;
  const u64 mask = lowest_bits(width);
  std::vector<i64> places(size_t(chunks) * buckets, 0);
  const auto begin = [&](i64 chunk) { return rows * chunk / chunks; };
  torch::stable::parallel_for(0, chunks, 1, [&](i64 first, i64 last) {
    for (i64 chunk = first; chunk < last; ++chunk) {
      i64* count = &places[size_t(chunk) * buckets];
      for (i64 i = begin(chunk); i < begin(chunk + 1); ++i) ++count[(from[i] >> shift) & mask];
    }
  });
  i64 total = 0;
  for (size_t bucket = 0; bucket < buckets; ++bucket) {
    const i64 before = total;
    for (i64 chunk = 0; chunk < chunks; ++chunk) {
      i64& place = places[size_t(chunk) * buckets + bucket];
      const i64 count = place;
      place = total;
      total += count;
    }
    if (total - before == rows) return false;
  }
  torch::stable::parallel_for(0, chunks, 1, [&](i64 first, i64 last) {
    for (i64 chunk = first; chunk < last; ++chunk) {
      i64* place = &places[size_t(chunk) * buckets];
      for (i64 i = begin(chunk); i < begin(chunk + 1); ++i) to[place[(from[i] >> shift) & mask]++] = from[i];
    }
  });
  return true;
}

// Sorts `words` by the bits [low, low + width), stably; `spare` has the same length.
inline void radix_sort(Words& words, Words& spare, i64 rows, int low, int width) {
  const i64 chunks = std::max<i64>(1, std::min<i64>(torch::stable::get_num_threads(), rows / kSortGrain));
  const int passes = (width + kDigit - 1) / kDigit;
  for (int pass = 0; pass < passes; ++pass) {
    const int begin = width * pass / passes, end = width * (pass + 1) / passes;
    if (radix_pass(words.get(), spare.get(), rows, low + begin, end - begin, chunks)) std::swap(words, spare);
  }
}

// Puts the keys of a round above the row in every word; the row is the place itself in the first round.
inline void pack(Words& words, const Round& round, bool first, i64 rows, int row_bits) {
  const u64 row_mask = lowest_bits(row_bits);
  torch::stable::parallel_for(0, rows, kSortGrain, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) words[i] = first ? u64(i) : words[i] & row_mask;
    int at = row_bits;
    for (const Field& field : round.fields) {  // a key at a time, in a loop that takes several rows at once
      const u64 mask = lowest_bits(field.width);
      if (first) {
        for (i64 i = begin; i < end; ++i) words[i] |= (((u64(field.key[i]) - field.low) >> field.shift) & mask) << at;
      } else {
        for (i64 i = begin; i < end; ++i) words[i] |= (((u64(field.key[words[i] & row_mask]) - field.low) >> field.shift) & mask) << at;
      }
      at += field.width;
    }
  });
}

// The number of the segment at each place: a new one starts where a label changes. Returns whether two rows have all keys equal.
inline bool number_segments(
    const Words& words, const Round& round, const std::vector<const i64*>& labels, const std::vector<const i64*>& within, bool one_round,
    i64 rows, int row_bits, const i64* order, i64* segment) {
  i64 number = segment[0] = 0;
  bool repeated = false;
  if (one_round) {  // the words show where a label changes, without a look at the labels
    const int shift = row_bits + round.width - round.label_width;
    for (i64 place = 1; place < rows; ++place) {
      number += round.label_width > 0 && words[place] >> shift != words[place - 1] >> shift;
      repeated |= words[place] >> row_bits == words[place - 1] >> row_bits;
      segment[place] = number;
    }
    return repeated;
  }
  for (i64 place = 1; place < rows; ++place) {
    bool other = false, later = false;
    for (const i64* label : labels) other |= label[order[place]] != label[order[place - 1]];
    for (const i64* key : within) later |= key[order[place]] != key[order[place - 1]];
    repeated |= !other && !later;
    segment[place] = number += other;
  }
  return repeated;
}

// Writes the row at each place and the number of its segment: rows of equal `labels`, sorted by `within` inside. The last key of
// each list counts most. Returns whether two rows have all keys equal.
inline bool sort_segments(
    const std::vector<const i64*>& labels, const std::vector<const i64*>& within, i64 rows, i64* order, i64* segment) {
  if (rows == 0) return false;
  const int row_bits = bit_width(u64(rows - 1));
  std::vector<const i64*> keys = within;
  keys.insert(keys.end(), labels.begin(), labels.end());
  const std::vector<Round> rounds = plan(keys, within.size(), rows, 64 - row_bits);

  Words words(new u64[size_t(rows)]), spare;
  for (const Round& round : rounds) {
    const bool first = &round == &rounds.front();
    pack(words, round, first, rows, row_bits);
    // In the first round the low bits are the place itself, so rows that stand in order are words in order; later it may say no in vain.
    if (std::is_sorted(words.get(), words.get() + rows)) continue;
    if (!spare) spare.reset(new u64[size_t(rows)]);
    radix_sort(words, spare, rows, row_bits, round.width);
  }

  for (i64 place = 0; place < rows; ++place) order[place] = i64(words[place] & lowest_bits(row_bits));
  return number_segments(words, rounds[0], labels, within, rounds.size() == 1, rows, row_bits, order, segment);
}

}  // namespace gigpo_segments
