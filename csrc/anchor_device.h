// What the threads of a warp or a block do together for a state: load it, hash it, compare it. Plain pointers and no standard header, so
// that NVRTC can compile it, and a C++ compiler through tests/anchor_shim.h.
#pragma once

#include "anchor_hash.h"

namespace anchor {

constexpr unsigned kLanes = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr unsigned kThreads = 256;         // a block may have fewer, in whole warps
constexpr unsigned kBlocks = 4;            // of which a multiprocessor has at least as many at once: 64 registers a thread
constexpr i64 kWarpBytes = 16 * kLanes;    // what a warp loads at once

constexpr i64 kStaged = 256;               // bytes of a state that a warp can copy to shared memory

#if defined(__CUDACC__)
#define ANCHOR_ROLLED _Pragma("unroll 1")  // what is rare must not cost registers
#else
#define ANCHOR_ROLLED
#endif

struct Words {
  u64 first, second;
};

// A plain look before an atomic operation: most rows repeat a state, and their slot needs no change.
template <class T>
static __device__ __forceinline__ T peek(T* p) {
#if defined(__CUDACC__)
  return *static_cast<volatile T*>(p);
#else
  return __atomic_load_n(p, __ATOMIC_RELAXED);
#endif
}

static __device__ __forceinline__ u64 shuffled_sum(u64 value) {
  // Lanes with the same number modulo 4 hold parts of the same accumulators.
  for (unsigned distance = 4; distance < kLanes; distance *= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

// How a state is read: by whole aligned words. The first and the last of them may stick out of it, which is right while they lie in the
// buffer that holds the states; those of the buffer's first and last states may not, and are then put together from the state's own bytes.
struct Reader {
  bool words_inside;

  // The 8 bytes at p, whatever its alignment; all are the state's.
  ANCHOR_INLINE u64 operator()(const u8* p) const {
    if (words_inside) return read64(p);
    return u64(read32(p)) | u64(read32(p + 4)) << 32;
  }

  // The aligned 16 bytes at `words`, as far as they lie in [begin, end), the state or a part of it.
  ANCHOR_INLINE Words load16(const u8* words, const u8* begin, const u8* end) const {
    if (words_inside || (words >= begin && words + 16 <= end)) {
      const ulonglong2 both = *reinterpret_cast<const ulonglong2*>(words);
      return {both.x, both.y};
    }
    Words found = {0, 0};
    ANCHOR_ROLLED for (unsigned i = 0; i < 16; ++i) {
      if (words + i >= begin && words + i < end) (i < 8 ? found.first : found.second) |= u64(words[i]) << (i % 8 * 8);
    }
    return found;
  }
};

// The reader of the state [p, p + length) in the buffer [begin, end).
static __device__ __forceinline__ Reader reader_of(const u8* begin, const u8* end, const u8* p, i64 length) {
  const u64 first = reinterpret_cast<u64>(p) & ~u64(15), last = (reinterpret_cast<u64>(p + length) + 15) & ~u64(15);
  return {first >= reinterpret_cast<u64>(begin) && last <= reinterpret_cast<u64>(end)};
}

// The 16 bytes at p + 16 * lane, as far as they lie below p + bytes; what is returned beyond that means nothing. p may have any alignment:
// lanes load the aligned 16 bytes that theirs begin in and take the rest from the next lane. All lanes must take part.
static __device__ __forceinline__ Words warp_load16(Reader read, const u8* p, i64 bytes, unsigned lane) {
  const u64 misaligned = reinterpret_cast<u64>(p) & 15;
  const u8* const word = p - misaligned + 16 * u64(lane);
  const u8* const end = p + bytes;
  const Words mine = word < end ? read.load16(word, p, end) : Words{0, 0};
  if (misaligned == 0) return mine;
  Words next = {__shfl_sync(kAllLanes, mine.first, (lane + 1) % kLanes), __shfl_sync(kAllLanes, mine.second, (lane + 1) % kLanes)};
  if (lane == kLanes - 1) next = word + 16 < end ? read.load16(word + 16, p, end) : Words{0, 0};
  const u64 low = misaligned < 8 ? mine.first : mine.second, middle = misaligned < 8 ? mine.second : next.first;
  const u64 high = misaligned < 8 ? next.first : next.second, bits = misaligned % 8 * 8;
  if (bits == 0) return {low, middle};
  return {low >> bits | middle << (64 - bits), middle >> bits | high << (64 - bits)};
}

// The bytes [p, p + length), at most kStaged, in shared memory, where words may be read from any place. All lanes must take part; what they
// got before is overwritten.
static __device__ __forceinline__ const u8* staged(Reader read, const u8* p, i64 length, Words* room, unsigned lane) {
  const Words mine = warp_load16(read, p, length, lane);
  __syncwarp();  // nobody reads what was there
  if (lane < kStaged / 16) room[lane] = mine;
  __syncwarp();
  return reinterpret_cast<const u8*>(room);
}

// What the stripes of one block of a long state add to its accumulators: lane l returns the sums for accumulators 2 (l % 4) and the next.
// Of the eight stripes that a warp reads at once, lane l has 16 bytes: piece l % 4 of stripe l / 4.
static __device__ __forceinline__ Words warp_block_sum(Reader read, const u8* p, i64 stripes, const u64* key, unsigned lane) {
  const unsigned piece = lane % 4;
  Words sum = {0, 0};
  for (i64 begin = 0; begin < stripes; begin += kLanes / 4) {
    const Words words = warp_load16(read, p + begin * kStripe, (stripes - begin) * kStripe, lane);
    const i64 n = begin + lane / 4;
    if (n < stripes) accumulate16(sum.first, sum.second, words.first, words.second, key[n + 2 * piece], key[n + 2 * piece + 1]);
  }
  return {shuffled_sum(sum.first), shuffled_sum(sum.second)};
}

// acc[place] of eight, without an address: an array that has none stays in registers.
static __device__ __forceinline__ u64 chosen(const u64* acc, unsigned place) {
  u64 value = acc[0];
  ANCHOR_UNROLLED for (unsigned i = 1; i < 8; ++i) value = place == i ? acc[i] : value;
  return value;
}

static __device__ __forceinline__ i64 smaller(i64 a, i64 b) { return a < b ? a : b; }

// The whole warp hashes one state; every lane returns the fingerprint. Up to 240 bytes there is nothing to share out but the loading.
static __device__ Fingerprint warp_fingerprint(
    Reader read, const u8* p, i64 length, u64 seed, const u64* key, Words* room, unsigned lane) {
  if (length <= kLongerThan) return short_fingerprint(staged(read, p, length, room, lane), length, seed, key);
  const i64 stripes = (length - 1) / kStripe;
  u64 acc[8];
  start_accumulators(acc);
  const unsigned piece = lane % 4;
  u64 even = chosen(acc, 2 * piece), odd = chosen(acc, 2 * piece + 1);
  for (i64 block = 0; block < stripes; block += kStripesPerBlock) {
    const i64 in_block = smaller(stripes - block, kStripesPerBlock);
    const Words sum = warp_block_sum(read, p + block * kStripe, in_block, key, lane);
    even += sum.first;
    odd += sum.second;
    if (in_block == kStripesPerBlock) {
      even = scrambled(even, key[16 + 2 * piece]);
      odd = scrambled(odd, key[16 + 2 * piece + 1]);
    }
  }
  ANCHOR_UNROLLED for (unsigned i = 0; i < 4; ++i) {
    acc[2 * i] = __shfl_sync(kAllLanes, even, i);
    acc[2 * i + 1] = __shfl_sync(kAllLanes, odd, i);
  }
  const u8* secret = seeded_secret(key);
  accumulate(acc, staged(read, p + length - kStripe, kStripe, room, lane), secret + 121);
  return finish_accumulators(acc, length, secret);
}

// What the threads of a block share.
struct Shared {
  alignas(16) Words staged[kThreads / kLanes][kStaged / 16];  // a short state, or the end of a long one, for each warp
  u64 key[kKeyWords];
  u64 sums[2][kThreads / kLanes][8];  // of as many blocks of a state as there are warps, and of those before
  unsigned long long told;
};

// The whole block hashes one long state; its first warp returns the fingerprint. The warps add up blocks of the state; the first warp folds
// them into the accumulators, in order, while the others are at the next ones.
static __device__ Fingerprint block_fingerprint(Reader read, const u8* p, i64 length, Shared& shared) {
  const unsigned lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes, warps = blockDim.x / kLanes;
  const i64 stripes = (length - 1) / kStripe;
  u64 acc[8];
  start_accumulators(acc);
  u64 mine = chosen(acc, lane % 8);
  unsigned turn = 0;
  for (i64 first = 0; first < stripes; first += warps * kStripesPerBlock, turn ^= 1) {
    const i64 block = first + warp * kStripesPerBlock;
    if (block < stripes) {
      const Words sum = warp_block_sum(read, p + block * kStripe, smaller(stripes - block, kStripesPerBlock), shared.key, lane);
      if (lane < 4) {
        shared.sums[turn][warp][2 * lane] = sum.first;
        shared.sums[turn][warp][2 * lane + 1] = sum.second;
      }
    }
    __syncthreads();
    for (unsigned w = 0; warp == 0 && w < warps && first + w * kStripesPerBlock < stripes; ++w) {
      mine += shared.sums[turn][w][lane % 8];
      if (first + (w + 1) * kStripesPerBlock <= stripes) mine = scrambled(mine, shared.key[16 + lane % 8]);
    }
  }
  __syncthreads();  // the sums may be overwritten now
  if (warp != 0) return {0, 0};
  ANCHOR_UNROLLED for (unsigned i = 0; i < 8; ++i) acc[i] = __shfl_sync(kAllLanes, mine, i);
  const u8* secret = seeded_secret(shared.key);
  accumulate(acc, staged(read, p + length - kStripe, kStripe, shared.staged[0], lane), secret + 121);
  return finish_accumulators(acc, length, secret);
}

// Whether the 16 bytes that this lane has of kWarpBytes at `base` differ, within `length`. All lanes must take part.
static __device__ __forceinline__ bool lane_differs(Reader read, const u8* a, const u8* b, i64 base, i64 length, unsigned lane) {
  const Words x = warp_load16(read, a + base, length - base, lane), y = warp_load16(read, b + base, length - base, lane);
  const i64 left = length - base - 16 * i64(lane);
  const u64 first = x.first ^ y.first, second = x.second ^ y.second;
  if (left >= 16) return (first | second) != 0;
  if (left > 8) return first != 0 || second << (8 * (16 - left)) != 0;
  return left > 0 && first << (8 * (8 - left)) != 0;
}

// The threads that enter one row together: a warp or a block. Every one of them calls every function.
struct WarpTeam {
  unsigned lane;

  __device__ bool leads() const { return lane == 0; }
  __device__ unsigned long long told(unsigned long long value) const { return __shfl_sync(kAllLanes, value, 0); }
  __device__ bool equal(Reader read, const u8* a, const u8* b, i64 length) const {
    for (i64 base = 0; base < length; base += kWarpBytes) {
      if (__any_sync(kAllLanes, lane_differs(read, a, b, base, length, lane))) return false;
    }
    return true;
  }
};

struct BlockTeam {
  Shared& shared;

  __device__ bool leads() const { return threadIdx.x == 0; }
  __device__ unsigned long long told(unsigned long long value) const {
    if (leads()) shared.told = value;
    __syncthreads();
    value = shared.told;
    __syncthreads();
    return value;
  }
  __device__ bool equal(Reader read, const u8* a, const u8* b, i64 length) const {
    const i64 warp = threadIdx.x / kLanes, stride = i64(blockDim.x) * 16;
    for (i64 begin = 0; begin < length; begin += stride) {
      const i64 base = begin + warp * kWarpBytes;
      if (__syncthreads_or(base < length && lane_differs(read, a, b, base, length, threadIdx.x % kLanes))) return false;
    }
    return true;
  }
};

}  // namespace anchor
