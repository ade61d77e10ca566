// The table that turns rows into groups on a CPU. It needs neither torch nor Python, so sanitizers can run it by itself.
//
// A slot holds 32 bits of a row's hash and the row's number, eight slots a cache line. The hash only filters; bytes decide. Rows come in
// batches: what all of them will touch is asked for before the first is looked at, because a table line, the earlier row that a state may
// equal, and that row's bytes lie in three places of memory, and waiting for them one by one costs ten times what the arithmetic does.
// Rows are entered in order, so the row kept for a state is its first one. Where an enemy could have made states collide, rows are set
// aside (see find), for anchor_group.h to hash again.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "anchor_siphash.h"

#ifndef ANCHOR_COUNT  // tests count how often it happens
#define ANCHOR_COUNT(what)
#endif

namespace anchor {

#if defined(ANCHOR_SMALL)
constexpr i64 kMostRows = 100;
constexpr int kFewestLines = 2;
#else
constexpr i64 kMostRows = 0xFFFFFFFEll;  // row + 1 fits 32 bits
constexpr int kFewestLines = 64;
#endif
constexpr int kLines = int(kProbes / 8);  // lines looked at before a row is set aside
constexpr size_t kFewLines = 1 << 14;      // of all tables: a mebibyte
constexpr i64 kBatch = 64;                 // rows that are looked up together

// Row i is lengths[i] >> kind_bits bytes at base + starts[i]. Without starts and lengths: width bytes at base + i * width. The bits of
// lengths[i] below kind_bits tell types apart, labels (or none) episode groups: rows that differ there are different states.
struct Rows {
  u64 base;
  const i64* starts;
  const i64* lengths;
  i64 width;
  int kind_bits;
  const i64* labels;
  i64 count;

  const u8* bytes(i64 i) const { return reinterpret_cast<const u8*>(base + u64(starts == nullptr ? i * width : starts[i])); }
  i64 tag(i64 i) const { return lengths == nullptr ? width : lengths[i]; }
  i64 kind(i64 i) const { return tag(i) & ((i64(1) << kind_bits) - 1); }
  i64 length(i64 i) const { return tag(i) >> kind_bits; }
  i64 label(i64 i) const { return labels == nullptr ? 0 : labels[i]; }

  // Asks for what the functions above will read.
  void prefetch(i64 i) const {
    if (starts != nullptr) __builtin_prefetch(starts + i);
    if (lengths != nullptr) __builtin_prefetch(lengths + i);
    if (labels != nullptr) __builtin_prefetch(labels + i);
  }
};

struct Options {
  u64 seed;
  u64 sip_key[2];
  i64 hash_bits;
  bool bytes_decide;
};

inline bool same_bytes(const u8* p, const u8* q, i64 length) {
  if (length >= 8 && length <= 16) return read64(p) == read64(q) && read64(p + length - 8) == read64(q + length - 8);
  return length == 0 || std::memcmp(p, q, size_t(length)) == 0;
}

// When two rows are the same state: where there are no fingerprints of all rows, their bytes decide.
struct Sameness {
  Rows rows;
  const Fingerprint* prints;

  bool operator()(i64 a, i64 b) const {
    ANCHOR_COUNT(comparisons);
    if (rows.tag(a) != rows.tag(b) || rows.label(a) != rows.label(b)) return false;
    if (prints != nullptr) return prints[a].low == prints[b].low && prints[a].high == prints[b].high;
    const u8 *p = rows.bytes(a), *q = rows.bytes(b);
    return p == q || same_bytes(p, q, rows.length(a));
  }
};

inline void prefetch_bytes(const u8* p, i64 length) {
  for (i64 offset = 0; offset < length && offset < kPrefetch; offset += 64) __builtin_prefetch(p + offset);
  if (length > 0) __builtin_prefetch(p + (length < kPrefetch ? length : kPrefetch) - 1);
}

// An array of zeros. From `mapped_from` bytes on it comes from the kernel in pages as large as it has, which spares a random look most of
// its page walk, and goes back there at once, while others may still grow. Smaller ones stay in the heap, whose pages need not be made
// anew for every call.
template <class T>
class Zeroed {
 public:
  Zeroed(size_t count, size_t mapped_from) : count_(count) {
#if defined(__linux__)
    mapped_ = bytes() >= mapped_from;
    if (mapped_) {
      void* pages = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (pages == MAP_FAILED) throw std::bad_alloc();
      madvise(pages, bytes(), MADV_HUGEPAGE);
      values_ = static_cast<T*>(pages);
      return;
    }
#else
    static_cast<void>(mapped_from);
#endif
    values_ = static_cast<T*>(std::aligned_alloc(alignof(T), bytes()));
    if (values_ == nullptr) throw std::bad_alloc();
    std::memset(static_cast<void*>(values_), 0, bytes());
  }
  Zeroed(Zeroed&& other) noexcept { *this = std::move(other); }
  Zeroed& operator=(Zeroed&& other) noexcept {
    std::swap(values_, other.values_);
    std::swap(count_, other.count_);
    std::swap(mapped_, other.mapped_);
    return *this;
  }
  ~Zeroed() {
#if defined(__linux__)
    if (mapped_) {
      munmap(values_, bytes());
      return;
    }
#endif
    std::free(values_);
  }

  size_t size() const { return count_; }
  T& operator[](size_t i) { return values_[i]; }
  const T& operator[](size_t i) const { return values_[i]; }
  const T* begin() const { return values_; }
  const T* end() const { return values_ + count_; }

 private:
  size_t bytes() const { return count_ * sizeof(T); }

  T* values_ = nullptr;
  size_t count_ = 0;
  bool mapped_ = false;
};

// Rows on their way into a table, with their hashes.
struct Entries {
  std::vector<u32> rows, hashes;
  i64 count = 0;

  void push(u32 row, u32 hash) {
    if (count == i64(rows.size())) rows.resize(size_t(2 * count + 64)), hashes.resize(rows.size());
    rows[size_t(count)] = row;
    hashes[size_t(count++)] = hash;
  }
};

class Table {
 public:
  // Up to so many lines it grows by four and in the heap, which saves time and takes room.
  explicit Table(size_t few_lines = kFewLines)
      : few_lines_(few_lines), lines_(size_t(kFewestLines), mapped_from()), mask_(u32(kFewestLines - 1)) {}

  // Enters the given rows in that order and writes into firsts, for each, the first row of its state. Rows that cannot be entered stay
  // on a list of their own, with their hashes.
  void enter(const Sameness same, const Entries& given, i64* firsts) {
    for (i64 begin = 0; begin < given.count; begin += kBatch) {
      const i64 count = std::min(kBatch, given.count - begin);
      const u32 *hashes = given.hashes.data() + begin, *numbers = given.rows.data() + begin;
      u32 found[kBatch];  // a row that is probably the same state (plus one), or 0
      for (i64 j = 0; j < count; ++j) __builtin_prefetch(&lines_[hashes[j] & mask_]);
      for (i64 j = 0; j < count; ++j) {
        found[j] = peek(hashes[j]);
        if (found[j] != 0) same.rows.prefetch(i64(found[j]) - 1);
      }
      for (i64 j = 0; same.prints == nullptr && j < count; ++j) {
        const i64 earlier = i64(found[j]) - 1;
        if (earlier >= 0) prefetch_bytes(same.rows.bytes(earlier), same.rows.length(earlier));
      }
      for (i64 j = 0; j < count; ++j) {
        const i64 i = numbers[j], earlier = i64(found[j]) - 1;
        firsts[i] = earlier >= 0 && same(earlier, i) ? earlier : find(same, hashes[j], i, found[j]);
        if (firsts[i] < 0) set_aside_.push(u32(i), hashes[j]);
      }
    }
  }

  // One row of every state in the table, its first, in any order.
  Entries states() const {
    Entries all;
    all.rows.resize(used_), all.hashes.resize(used_);
    for (const Line& line : lines_) {
      for (unsigned k = 0, taken = line.taken(); k < taken; ++k) all.push(line.row[k] - 1, line.hash[k]);
    }
    return all;
  }

  const Entries& set_aside() const { return set_aside_; }

 private:
  struct alignas(64) Line {
    u32 hash[8], row[8];  // row number + 1; 0 is free, and slots are taken from the left

    // A bit for each slot that holds this hash; of free slots too, if it is 0.
    unsigned alike(u32 wanted) const { return equal(hash, wanted); }

    // How many slots are taken.
    unsigned taken() const { return unsigned(__builtin_ctz(equal(row, 0) | 1u << 8)); }

   private:
    static unsigned equal(const u32* values, u32 wanted) {
#if defined(ANCHOR_SSE2)
      const __m128i value = _mm_set1_epi32(int(wanted));
      const __m128i* four = reinterpret_cast<const __m128i*>(values);
      const __m128i both = _mm_packs_epi32(_mm_cmpeq_epi32(value, _mm_load_si128(four)), _mm_cmpeq_epi32(value, _mm_load_si128(four + 1)));
      return unsigned(_mm_movemask_epi8(_mm_packs_epi16(both, _mm_setzero_si128())));
#else
      unsigned mask = 0;
      for (unsigned k = 0; k < 8; ++k) mask |= unsigned(values[k] == wanted) << k;
      return mask;
#endif
    }
  };

  static u32 step(u32 hash) { return hash * kPrime32A >> 16 | 1; }  // odd: the sequence visits every line before it repeats

  u32 peek(u32 hash) const {
    const Line& line = lines_[hash & mask_];
    const unsigned alike = line.alike(hash);
    return alike == 0 ? 0 : line.row[__builtin_ctz(alike)];
  }

  // The first row of row i's state, which may be i itself; row `other` (plus one, or 0) is known to be none. -1 sets row i aside. That
  // happens if kCrowd other states share its hash, or if all kLines lines are full. Either way every later row of that state is set aside
  // too: nothing is ever removed, states of one hash stay on one sequence without a gap when the table grows, and after the first sequence
  // that was full it does not grow.
  i64 find(const Sameness same, u32 hash, i64 i, u32 other) {
    int others = 0;
    u32 at = hash & mask_;
    for (int probe = 0; probe < kLines; ++probe, at = (at + step(hash)) & mask_) {
      ANCHOR_COUNT(lines);
      Line& line = lines_[at];
      for (unsigned alike = line.alike(hash); alike != 0; alike &= alike - 1) {
        const u32 earlier = line.row[__builtin_ctz(alike)];
        if (earlier == 0) break;
        if (earlier != other && same(i64(earlier) - 1, i)) return i64(earlier) - 1;
        if (++others == kCrowd) return -1;
      }
      if (!put(line, hash, u32(i + 1))) continue;
      if (++used_ > lines_.size() * 6 && !full_) full_ = !grow();
      return i;
    }
    full_ = true;
    return -1;
  }

  static bool put(Line& line, u32 hash, u32 row) {
    const unsigned slot = line.taken();
    if (slot == 8) return false;
    line.hash[slot] = hash;
    line.row[slot] = row;
    return true;
  }

  bool grow() {
    Zeroed<Line> larger(lines_.size() * (lines_.size() < few_lines_ ? 4 : 2), mapped_from());
    const u32 mask = u32(larger.size() - 1);
    for (const Line& line : lines_) {
      for (unsigned k = 0, taken = line.taken(); k < taken; ++k) {
        u32 at = line.hash[k] & mask;
        for (int probe = 0; !put(larger[at], line.hash[k], line.row[k]); at = (at + step(line.hash[k])) & mask) {
          if (++probe == kLines) return false;
        }
      }
    }
    lines_ = std::move(larger);
    mask_ = mask;
    return true;
  }

  size_t mapped_from() const { return std::max(size_t(1) << 18, 2 * few_lines_ * sizeof(Line)); }

  size_t few_lines_;
  Zeroed<Line> lines_;
  u32 mask_;
  size_t used_ = 0;
  bool full_ = false;
  Entries set_aside_;
};

}  // namespace anchor
