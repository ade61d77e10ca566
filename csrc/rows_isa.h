// Instantiates the vector formulas for every instruction set this machine type has, and picks one at run time.
#pragma once

#include "rows_ops.h"

#define ROWS_ISA baseline
#define ROWS_TARGET
#define ROWS_BYTES 16
#include "rows_vec.h"
#undef ROWS_ISA
#undef ROWS_TARGET
#undef ROWS_BYTES

#if defined(__x86_64__)

#define ROWS_ISA avx2
#define ROWS_TARGET __attribute__((target("avx2,fma")))
#define ROWS_BYTES 32
#include "rows_vec.h"
#undef ROWS_ISA
#undef ROWS_TARGET
#undef ROWS_BYTES

#define ROWS_ISA avx512
#define ROWS_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define ROWS_BYTES 64
#include "rows_vec.h"
#undef ROWS_ISA
#undef ROWS_TARGET
#undef ROWS_BYTES

#endif

namespace gigpo_rows {

// Levels: 0 baseline (SSE2, NEON, or whatever the compiler targets), 1 AVX2 + FMA, 2 AVX-512.
inline int64_t best_level() {
#if defined(__x86_64__)
  static const int64_t level = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      return 2;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1 : 0;
  }();
  return level;
#else
  return 0;
#endif
}

// The table of a level; nullptr if this machine cannot run it. Negative: the best.
inline const RowOps* ops_of(int64_t level) {
  if (level < 0) level = best_level();
  if (level > best_level()) return nullptr;
#if defined(__x86_64__)
  if (level == 2) return &avx512::kOps;
  if (level == 1) return &avx2::kOps;
#endif
  return &baseline::kOps;
}

} // namespace gigpo_rows
