// The fingerprint of longer states on the wider registers of an x86 host, bit for bit that of anchor_hash.h, chosen at run time: with
// 16 bytes at a time, arithmetic takes as long as memory does. Included once per instruction set by anchor_isa.h, with WIDE_ISA
// (a namespace), WIDE_TARGET (a function attribute) and WIDE_BYTES (32 or 64) set, so it has no include guard.

namespace anchor {
namespace WIDE_ISA {

typedef u64 Words __attribute__((vector_size(WIDE_BYTES)));
constexpr int kParts = 64 / WIDE_BYTES;  // registers that hold the eight accumulators

#define WIDE_INLINE static inline __attribute__((always_inline)) WIDE_TARGET

WIDE_INLINE Words load(const u8* p) {
  Words words;
  __builtin_memcpy(&words, p, sizeof words);
  return words;
}

// The low halves of the words, multiplied.
WIDE_INLINE Words product(Words a, Words b) {
#if WIDE_BYTES == 64
  return (Words)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, (__m512i)b);  // without a mask, GCC warns of its own header
#else
  return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#endif
}

WIDE_INLINE Words neighbours(Words words) {
#if WIDE_BYTES == 64
  return __builtin_shuffle(words, Words{1, 0, 3, 2, 5, 4, 7, 6});
#else
  return __builtin_shuffle(words, Words{1, 0, 3, 2});
#endif
}

WIDE_INLINE void accumulate(Words* sums, const u8* p, const u8* secret) {
  for (int k = 0; k < kParts; ++k) {
    const Words data = load(p + k * WIDE_BYTES), keyed = data ^ load(secret + k * WIDE_BYTES);
    sums[k] += product(keyed, keyed >> 32) + neighbours(data);
  }
}

WIDE_TARGET static Fingerprint long_fingerprint(const u8* p, i64 length, const u64* key) {
  const u8* secret = seeded_secret(key);
  const Words prime = Words{} + kPrime32A;
  alignas(64) u64 acc[8];
  start_accumulators(acc);
  Words sums[kParts];
  for (int k = 0; k < kParts; ++k) sums[k] = load(reinterpret_cast<const u8*>(acc) + k * WIDE_BYTES);
  const i64 stripes = (length - 1) / kStripe;  // the last stripe, which may overlap these, is taken by itself
  for (i64 block = 0; block < stripes; block += kStripesPerBlock) {
    const i64 end = block + kStripesPerBlock;
    for (i64 n = block; n < (end < stripes ? end : stripes); ++n) {
      __builtin_prefetch(p + n * kStripe + kPrefetch);
      accumulate(sums, p + n * kStripe, secret + 8 * (n - block));
    }
    if (end > stripes) break;
    for (int k = 0; k < kParts; ++k) {
      const Words mixed = sums[k] ^ sums[k] >> 47 ^ load(secret + 128 + k * WIDE_BYTES);
      sums[k] = product(mixed, prime) + (product(mixed >> 32, prime) << 32);
    }
  }
  accumulate(sums, p + length - kStripe, secret + 121);
  for (int k = 0; k < kParts; ++k) __builtin_memcpy(reinterpret_cast<u8*>(acc) + k * WIDE_BYTES, &sums[k], WIDE_BYTES);
  return finish_accumulators(acc, length, secret);
}

#undef WIDE_INLINE

}  // namespace WIDE_ISA
}  // namespace anchor
