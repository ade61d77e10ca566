// The hash by which a host's tables find a state of up to 240 bytes: NH of UMAC (Black, Halevi, Krawczyk, Krovetz, Rogaway, CRYPTO 1999).
//
// Every half of a word is added to a key of its own, the halves of a word are multiplied, and the products are summed: for two states of
// one length that differ, equal sums have probability 2^-32 over the keys. That is what a table of 32-bit hashes can use, at a third of the
// fingerprint's arithmetic. It never leaves the table, so neither devices nor other ranks need to know it.
#pragma once

#include "anchor_hash.h"

namespace anchor {

class ShortHash {
 public:
  explicit ShortHash(u64 seed) {
    for (u64& word : keys_) {  // splitmix64
      u64 x = seed += 0x9E3779B97F4A7C15ull;
      x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
      x = (x ^ x >> 27) * 0x94D049BB133111EBull;
      word = x ^ x >> 31;
    }
  }

  u64 operator()(const u8* p, i64 length) const {
    const u64 sum = length > kPiece ? of_pieces(p, length) : of_words(p, length);
    return avalanche(sum + u64(length) * kPrimeA);
  }

 private:
  static constexpr i64 kPiece = 16, kPieces = (kLongerThan + kPiece - 1) / kPiece;

  static u64 product(u64 word, u64 key) { return u64(u32(word) + u32(key)) * u64(u32(word >> 32) + u32(key >> 32)); }

  // Of up to a piece: two words, which may overlap.
  u64 of_words(const u8* p, i64 length) const {
    u64 first = 0, last = 0;
    if (length >= 8) {
      first = read64(p), last = read64(p + length - 8);
    } else if (length >= 4) {
      first = read32(p), last = read32(p + length - 4);
    } else if (length > 0) {
      first = u64(p[0]) | u64(p[length >> 1]) << 8 | u64(p[length - 1]) << 16;
    }
    return product(first, keys_[0]) + product(last, keys_[1]);
  }

  // Of more: pieces, and what is left as a last piece that may overlap them, under a key of its own.
  u64 of_pieces(const u8* p, i64 length) const {
    const i64 whole = (length - 1) / kPiece;
    const u8* last = p + length - kPiece;
#if defined(ANCHOR_SSE2)
    const __m128i* keys = reinterpret_cast<const __m128i*>(keys_);
    const auto products = [](const u8* at, const __m128i* key) {
      const __m128i words = _mm_add_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)), _mm_load_si128(key));
      return _mm_mul_epu32(words, _mm_srli_epi64(words, 32));
    };
    __m128i sums = products(last, keys + kPieces);
#if defined(__GNUC__)
#pragma GCC unroll 4
#endif
    for (i64 i = 0; i < whole; ++i) sums = _mm_add_epi64(sums, products(p + kPiece * i, keys + i));
    return u64(_mm_cvtsi128_si64(_mm_add_epi64(sums, _mm_unpackhi_epi64(sums, sums))));
#else
    const auto products = [](const u8* at, const u64* key) { return product(read64(at), key[0]) + product(read64(at + 8), key[1]); };
    u64 sum = products(last, keys_ + 2 * kPieces);
    for (i64 i = 0; i < whole; ++i) sum += products(p + kPiece * i, keys_ + 2 * i);
    return sum;
#endif
  }

  alignas(16) u64 keys_[2 * (kPieces + 1)];
};

}  // namespace anchor
