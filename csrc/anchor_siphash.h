// SipHash with 128 bits of output: a keyed pseudorandom function, for the rows that the fast hashes failed to tell apart.
//
// With its default of 2 and 4 rounds it is pinned to the reference implementation's published vectors by tests/test_anchor_hash.py.
// Whoever does not know the key, which is drawn per process, cannot make two states agree; and bytes decide even so. Shared by host and
// device, as anchor_hash.h is.
#pragma once

#include "anchor_hash.h"

namespace anchor {

struct SipState {
  u64 a, b, c, d;
};

ANCHOR_INLINE u64 rotated(u64 x, int by) { return x << by | x >> (64 - by); }

ANCHOR_INLINE void sip_rounds(SipState& v, int rounds) {
  for (int i = 0; i < rounds; ++i) {
    v.a += v.b;
    v.b = rotated(v.b, 13) ^ v.a;
    v.a = rotated(v.a, 32);
    v.c += v.d;
    v.d = rotated(v.d, 16) ^ v.c;
    v.a += v.d;
    v.d = rotated(v.d, 21) ^ v.a;
    v.c += v.b;
    v.b = rotated(v.b, 17) ^ v.c;
    v.c = rotated(v.c, 32);
  }
}

template <int kRounds>
ANCHOR_INLINE void sip_word(SipState& v, u64 word) {
  v.d ^= word;
  sip_rounds(v, kRounds);
  v.a ^= word;
}

// SipHash-2-4-128; with other numbers of rounds, for each word and at the end, its faster or more careful relatives.
template <int kWordRounds = 2, int kEndRounds = 4, class Read = Plain>
ANCHOR_INLINE Fingerprint siphash(const u8* p, i64 length, u64 key_low, u64 key_high, const Read& read = {}) {
  SipState v = {key_low ^ 0x736F6D6570736575ull, key_high ^ 0x646F72616E646F6Dull ^ 0xEE, key_low ^ 0x6C7967656E657261ull,
                key_high ^ 0x7465646279746573ull};
  const i64 whole = length & ~i64(7);
  for (i64 i = 0; i < whole; i += 8) sip_word<kWordRounds>(v, read(p + i));
  u64 last = u64(length) << 56;
  for (i64 i = whole; i < length; ++i) last |= u64(p[i]) << (8 * (i - whole));
  sip_word<kWordRounds>(v, last);
  v.c ^= 0xEE;
  sip_rounds(v, kEndRounds);
  const u64 low = v.a ^ v.b ^ v.c ^ v.d;
  v.b ^= 0xDD;
  sip_rounds(v, kEndRounds);
  return {low, v.a ^ v.b ^ v.c ^ v.d};
}

}  // namespace anchor
