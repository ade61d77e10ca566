// The arithmetic of anchor grouping that host and device share: a keyed 128-bit fingerprint, the table's size, its probe sequence.
//
// The fingerprint is XXH3-128 with a seed (the public xxHash algorithm, XXH3_128bits_withSeed), pinned to published values by
// tests/test_anchor_hash.py. It only filters: bytes decide whether two states are equal, so no property of the hash is ever trusted.
// The seed is drawn per process, so nobody outside can prepare states that crowd into one slot, and a probe sequence is bounded anyhow.
//
// No torch and no standard header: g++, clang++, nvcc and NVRTC all take this file as it is. Little-endian machines only.
#pragma once

#if defined(__CUDACC__)
#define ANCHOR_INLINE __host__ __device__ __forceinline__
#define ANCHOR_UNROLLED _Pragma("unroll")  // an array that is indexed by a variable would lie in memory
#else
#define ANCHOR_INLINE inline
#define ANCHOR_UNROLLED
#endif

#if defined(__SSE2__) && !defined(__CUDACC__)
#include <emmintrin.h>
#define ANCHOR_SSE2 1
#endif

namespace anchor {

#if defined(__INT64_TYPE__) && !defined(__CUDACC_RTC__)
using i64 = __INT64_TYPE__;
using u64 = __UINT64_TYPE__;
#else
using i64 = long long;
using u64 = unsigned long long;
#endif
using u32 = unsigned int;
using u8 = unsigned char;

struct Fingerprint {
  u64 low, high;
};

constexpr i64 kStripe = 64;         // bytes that the eight accumulators take at once
constexpr i64 kStripesPerBlock = 16;
constexpr i64 kLongerThan = 240;    // longer states go through the accumulators
constexpr i64 kSecretBytes = 192;
constexpr i64 kKeyWords = 48;       // the secret changed by the seed (24 words), then the secret as published (24 words)
#if defined(ANCHOR_SMALL)  // tests make these bounds small, to reach what they guard
constexpr i64 kProbes = 8, kLongState = 600;
constexpr int kCrowd = 2;
#else
constexpr i64 kProbes = 128;       // slots looked at before a row is set aside
constexpr int kCrowd = 2;          // different states of one hash that a table takes; honest states hardly ever need a second
constexpr i64 kLongState = 8192;   // longer states get a block of a device, others a warp
#endif
#if !defined(__CUDACC__)
constexpr i64 kPrefetch = 1024;     // bytes that a host asks for ahead of reading them
#endif

constexpr u32 kPrime32A = 0x9E3779B1u, kPrime32B = 0x85EBCA77u, kPrime32C = 0xC2B2AE3Du;
constexpr u64 kPrimeA = 0x9E3779B185EBCA87ull, kPrimeB = 0xC2B2AE3D27D4EB4Full, kPrimeC = 0x165667B19E3779F9ull;
constexpr u64 kPrimeD = 0x85EBCA77C2B2AE63ull, kPrimeE = 0x27D4EB2F165667C5ull;
constexpr u64 kMixA = 0x165667919E3779F9ull, kMixB = 0x9FB21C651E98DF25ull;

// ---- reading and multiplying -------------------------------------------------------------------------------------------------

// Devices fault on an unaligned load, so there the two aligned words around it are read: right for memory that begins and ends on a word,
// as keys and copies in shared memory do. States begin and end anywhere, and have a Reader of their own (anchor_device.h). Hosts copy.
ANCHOR_INLINE u64 read64(const u8* p) {
#if defined(__CUDA_ARCH__)
  const u64 misaligned = reinterpret_cast<u64>(p) & 7;
  const u64* word = reinterpret_cast<const u64*>(p - misaligned);
  if (misaligned == 0) return word[0];
  return (word[0] >> (8 * misaligned)) | (word[1] << (64 - 8 * misaligned));
#else
  u64 value;
  __builtin_memcpy(&value, p, 8);
  return value;
#endif
}

// How siphash reads a state, unless told otherwise.
struct Plain {
  ANCHOR_INLINE u64 operator()(const u8* p) const { return read64(p); }
};

ANCHOR_INLINE u32 read32(const u8* p) {
  return u32(p[0]) | u32(p[1]) << 8 | u32(p[2]) << 16 | u32(p[3]) << 24;
}

ANCHOR_INLINE Fingerprint multiply(u64 a, u64 b) {
#if defined(__CUDA_ARCH__)
  return {a * b, __umul64hi(a, b)};
#else
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return {static_cast<u64>(product), static_cast<u64>(product >> 64)};
#endif
}

ANCHOR_INLINE u64 folded(u64 a, u64 b) {
  const Fingerprint product = multiply(a, b);
  return product.low ^ product.high;
}

ANCHOR_INLINE u32 swapped32(u32 x) {
  return x << 24 | (x & 0xFF00u) << 8 | (x >> 8 & 0xFF00u) | x >> 24;
}

ANCHOR_INLINE u64 swapped64(u64 x) {
  return u64(swapped32(u32(x))) << 32 | swapped32(u32(x >> 32));
}

ANCHOR_INLINE u64 avalanche(u64 h) {
  h = (h ^ h >> 37) * kMixA;
  return h ^ h >> 32;
}

ANCHOR_INLINE u64 avalanche_short(u64 h) {
  h = (h ^ h >> 33) * kPrimeB;
  h = (h ^ h >> 29) * kPrimeC;
  return h ^ h >> 32;
}

// ---- the key -----------------------------------------------------------------------------------------------------------------

ANCHOR_INLINE void expand_key(u64 seed, u64* key) {
  const u64 published[24] = {
      0xBE4BA423396CFEB8ull, 0x1CAD21F72C81017Cull, 0xDB979083E96DD4DEull, 0x1F67B3B7A4A44072ull, 0x78E5C0CC4EE679CBull,
      0x2172FFCC7DD05A82ull, 0x8E2443F7744608B8ull, 0x4C263A81E69035E0ull, 0xCB00C391BB52283Cull, 0xA32E531B8B65D088ull,
      0x4EF90DA297486471ull, 0xD8ACDEA946EF1938ull, 0x3F349CE33F76FAA8ull, 0x1D4F0BC7C7BBDCF9ull, 0x3159B4CD4BE0518Aull,
      0x647378D9C97E9FC8ull, 0xC3EBD33483ACC5EAull, 0xEB6313FAFFA081C5ull, 0x49DAF0B751DD0D17ull, 0x9E68D429265516D3ull,
      0xFCA1477D58BE162Bull, 0xCE31D07AD1B8F88Full, 0x280416958F3ACB45ull, 0x7E404BBBCAFBD7AFull};
  for (int i = 0; i < 24; ++i) {
    key[i] = i % 2 == 0 ? published[i] + seed : published[i] - seed;
    key[24 + i] = published[i];
  }
}

ANCHOR_INLINE const u8* seeded_secret(const u64* key) { return reinterpret_cast<const u8*>(key); }
ANCHOR_INLINE const u8* published_secret(const u64* key) { return reinterpret_cast<const u8*>(key + 24); }

// ---- states of up to 240 bytes -----------------------------------------------------------------------------------------------

ANCHOR_INLINE u64 mix16(const u8* p, const u8* secret, u64 seed) {
  return folded(read64(p) ^ (read64(secret) + seed), read64(p + 8) ^ (read64(secret + 8) - seed));
}

ANCHOR_INLINE void mix32(Fingerprint& sum, const u8* a, const u8* b, const u8* secret, u64 seed) {
  sum.low = (sum.low + mix16(a, secret, seed)) ^ (read64(b) + read64(b + 8));
  sum.high = (sum.high + mix16(b, secret + 16, seed)) ^ (read64(a) + read64(a + 8));
}

ANCHOR_INLINE Fingerprint up_to_16(const u8* p, u64 length, u64 seed, const u8* secret) {
  if (length > 8) {
    const u64 tail = read64(p + length - 8);
    const u64 flip = (read64(secret + 32) ^ read64(secret + 40)) - seed;
    const u64 high = tail ^ ((read64(secret + 48) ^ read64(secret + 56)) + seed);
    Fingerprint m = multiply(read64(p) ^ tail ^ flip, kPrimeA);
    m.low += (length - 1) << 54;
    m.high += high + u64(u32(high)) * (kPrime32B - 1);
    m.low ^= swapped64(m.high);
    const Fingerprint h = multiply(m.low, kPrimeB);
    return {avalanche(h.low), avalanche(h.high + m.high * kPrimeB)};
  }
  if (length >= 4) {
    seed ^= u64(swapped32(u32(seed))) << 32;
    const u64 word = read32(p) + (u64(read32(p + length - 4)) << 32);
    Fingerprint m = multiply(word ^ ((read64(secret + 16) ^ read64(secret + 24)) + seed), kPrimeA + (length << 2));
    m.high += m.low << 1;
    m.low ^= m.high >> 3;
    m.low = (m.low ^ m.low >> 35) * kMixB;
    return {m.low ^ m.low >> 28, avalanche(m.high)};
  }
  if (length > 0) {
    const u32 low = u32(p[0]) << 16 | u32(p[length >> 1]) << 24 | u32(p[length - 1]) | u32(length) << 8;
    const u32 turned = swapped32(low);
    const u32 high = turned << 13 | turned >> 19;
    return {avalanche_short(low ^ (u64(read32(secret) ^ read32(secret + 4)) + seed)),
            avalanche_short(high ^ (u64(read32(secret + 8) ^ read32(secret + 12)) - seed))};
  }
  return {avalanche_short(seed ^ read64(secret + 64) ^ read64(secret + 72)),
          avalanche_short(seed ^ read64(secret + 80) ^ read64(secret + 88))};
}

ANCHOR_INLINE Fingerprint up_to_240(const u8* p, u64 length, u64 seed, const u8* secret) {
  Fingerprint sum = {length * kPrimeA, 0};
  if (length <= 128) {
    for (u64 i = (length - 1) / 32 + 1; i-- > 0;) mix32(sum, p + 16 * i, p + length - 16 * (i + 1), secret + 32 * i, seed);
  } else {
    for (u64 i = 0; i < 4; ++i) mix32(sum, p + 32 * i, p + 32 * i + 16, secret + 32 * i, seed);
    sum = {avalanche(sum.low), avalanche(sum.high)};
    for (u64 i = 4; 32 * (i + 1) <= length; ++i) mix32(sum, p + 32 * i, p + 32 * i + 16, secret + 3 + 32 * (i - 4), seed);
    mix32(sum, p + length - 16, p + length - 32, secret + 103, 0 - seed);
  }
  return {avalanche(sum.low + sum.high), 0 - avalanche(sum.low * kPrimeA + sum.high * kPrimeD + (length - seed) * kPrimeB)};
}

ANCHOR_INLINE Fingerprint short_fingerprint(const u8* p, i64 length, u64 seed, const u64* key) {
  return length <= 16 ? up_to_16(p, u64(length), seed, published_secret(key)) : up_to_240(p, u64(length), seed, published_secret(key));
}

// ---- longer states -----------------------------------------------------------------------------------------------------------

ANCHOR_INLINE void start_accumulators(u64* acc) {
  const u64 start[8] = {kPrime32C, kPrimeA, kPrimeB, kPrimeC, kPrimeD, kPrime32B, kPrimeE, kPrime32A};
  ANCHOR_UNROLLED for (int i = 0; i < 8; ++i) acc[i] = start[i];
}

// What one 16-byte piece of a stripe adds to its two accumulators. Within a block these only add up, so a warp may do it in any order.
ANCHOR_INLINE void accumulate16(u64& even, u64& odd, u64 first, u64 second, u64 secret_first, u64 secret_second) {
  const u64 a = first ^ secret_first, b = second ^ secret_second;
  even += second + u64(u32(a)) * (a >> 32);
  odd += first + u64(u32(b)) * (b >> 32);
}

ANCHOR_INLINE void accumulate(u64* acc, const u8* p, const u8* secret) {
#if defined(ANCHOR_SSE2)
  for (int i = 0; i < 4; ++i) {
    const __m128i data = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i);
    const __m128i keyed = _mm_xor_si128(data, _mm_loadu_si128(reinterpret_cast<const __m128i*>(secret) + i));
    const __m128i product = _mm_mul_epu32(keyed, _mm_srli_epi64(keyed, 32));
    __m128i* out = reinterpret_cast<__m128i*>(acc) + i;
    _mm_storeu_si128(out, _mm_add_epi64(_mm_loadu_si128(out), _mm_add_epi64(product, _mm_shuffle_epi32(data, 0x4E))));
  }
#else
  ANCHOR_UNROLLED for (int i = 0; i < 8; i += 2) {
    accumulate16(acc[i], acc[i + 1], read64(p + 8 * i), read64(p + 8 * i + 8), read64(secret + 8 * i), read64(secret + 8 * i + 8));
  }
#endif
}

ANCHOR_INLINE u64 scrambled(u64 acc, u64 secret) { return (acc ^ acc >> 47 ^ secret) * kPrime32A; }

ANCHOR_INLINE u64 merged(const u64* acc, const u8* secret, u64 start) {
  ANCHOR_UNROLLED for (int i = 0; i < 8; i += 2) start += folded(acc[i] ^ read64(secret + 8 * i), acc[i + 1] ^ read64(secret + 8 * i + 8));
  return avalanche(start);
}

ANCHOR_INLINE Fingerprint finish_accumulators(const u64* acc, i64 length, const u8* secret) {
  return {merged(acc, secret + 11, u64(length) * kPrimeA), merged(acc, secret + kSecretBytes - 75, ~(u64(length) * kPrimeB))};
}

ANCHOR_INLINE Fingerprint long_fingerprint(const u8* p, i64 length, const u64* key) {
  const u8* secret = seeded_secret(key);
  u64 acc[8];
  start_accumulators(acc);
  const i64 stripes = (length - 1) / kStripe;  // the last stripe, which may overlap these, is taken by itself
  for (i64 n = 0; n < stripes; ++n) {
#if !defined(__CUDACC__)
    __builtin_prefetch(p + n * kStripe + kPrefetch);  // past the end is harmless, and usually the next state
#endif
    accumulate(acc, p + n * kStripe, secret + 8 * (n % kStripesPerBlock));
    if (n % kStripesPerBlock == kStripesPerBlock - 1) {
      for (int i = 0; i < 8; ++i) acc[i] = scrambled(acc[i], read64(secret + 128 + 8 * i));
    }
  }
  accumulate(acc, p + length - kStripe, secret + 121);
  return finish_accumulators(acc, length, secret);
}

// ---- what callers use --------------------------------------------------------------------------------------------------------

ANCHOR_INLINE Fingerprint fingerprint(const u8* p, i64 length, u64 seed, const u64* key) {
  return length <= kLongerThan ? short_fingerprint(p, length, seed, key) : long_fingerprint(p, length, key);
}

// Keeps `bits` (1..128) of a fingerprint. Tests keep 4, so that unequal states collide all the time and everything must still be right.
ANCHOR_INLINE Fingerprint truncated(Fingerprint f, i64 bits) {
  if (bits >= 128) return f;
  if (bits > 64) return {f.low, f.high & ((u64(1) << (bits - 64)) - 1)};
  return {bits == 64 ? f.low : f.low & ((u64(1) << bits) - 1), 0};
}

// A power of two, at least twice `rows`: the table is never more than half full.
ANCHOR_INLINE i64 table_capacity(i64 rows) {
  i64 capacity = 16;
  while (capacity < 2 * rows) capacity *= 2;
  return capacity;
}

// Slot number `probe` for a state of episode group `group`; the step is odd, so the sequence visits every slot before it repeats.
ANCHOR_INLINE i64 table_slot(Fingerprint f, i64 group, i64 probe, i64 capacity) {
  return static_cast<i64>((f.low + u64(group) * kPrimeE + u64(probe) * (f.high | 1)) & u64(capacity - 1));
}

}  // namespace anchor
