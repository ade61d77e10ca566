// Instantiates the fingerprint of longer states for every instruction set this machine type has, and picks one at run time.
#pragma once

#include "anchor_hash.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define WIDE_ISA avx2
#define WIDE_TARGET __attribute__((target("avx2")))
#define WIDE_BYTES 32
#include "anchor_wide.h"
#undef WIDE_ISA
#undef WIDE_TARGET
#undef WIDE_BYTES

#define WIDE_ISA avx512
#define WIDE_TARGET __attribute__((target("avx512f")))
#define WIDE_BYTES 64
#include "anchor_wide.h"
#undef WIDE_ISA
#undef WIDE_TARGET
#undef WIDE_BYTES

#endif

namespace anchor {

using LongFingerprint = Fingerprint (*)(const u8* p, i64 length, const u64* key);

// Levels: 0 as in anchor_hash.h, 1 AVX2, 2 AVX-512. nullptr if this machine cannot run that one.
inline LongFingerprint long_fingerprint_at(int level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (level == 2) return __builtin_cpu_supports("avx512f") ? avx512::long_fingerprint : nullptr;
  if (level == 1) return __builtin_cpu_supports("avx2") ? avx2::long_fingerprint : nullptr;
#endif
  return level == 0 ? long_fingerprint : nullptr;
}

// fingerprint of anchor_hash.h, with the part for longer states of one level.
inline Fingerprint fingerprint(const u8* p, i64 length, u64 seed, const u64* key, LongFingerprint longer) {
  return length <= kLongerThan ? short_fingerprint(p, length, seed, key) : longer(p, length, key);
}

// The fastest of this machine.
inline LongFingerprint best_long_fingerprint() {
  static const LongFingerprint best = [] {
    for (int level = 2; level > 0; --level) {
      if (const LongFingerprint found = long_fingerprint_at(level)) return found;
    }
    return long_fingerprint_at(0);
  }();
  return best;
}

}  // namespace anchor
