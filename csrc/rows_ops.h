// What one instruction set has to provide for the row kernels: work on one block of a row, in one arithmetic type.
// rows_vec.h fills this table once per instruction set; rows_cpu.cpp calls through it and holds everything that is not vectorised.
#pragma once

#include <cmath>
#include <cstdint>

namespace gigpo_rows {

// Columns handled at a time: the block's transformed logits stay in the first-level cache between the passes over them.
constexpr int64_t kBlock = 2048;
// Blocks are padded to a multiple of this, so that the loops have no remainder; a multiple of the lanes of every instruction set.
constexpr int64_t kPad = 32;

inline int64_t padded(int64_t count) {
  return (count + kPad - 1) / kPad * kPad;
}

// One row of the backward, reduced to what every element needs:
// z = scale * f(x), log p = z - top - log_sum, gradient = p * (constant + slope * log p) * f'(x), with f(x) = x or tanh(tanh_in * x).
template <class A>
struct RowGradient {
  A scale;
  A tanh_in;
  A top;
  A log_sum;
  A constant;
  A slope;
};

// The tensor memory of the next block, fetched while this one is computed: the arithmetic of one block is too long for the processor
// to see past it, and memory would idle. Any address will do, since a prefetch never faults.
struct Ahead {
  const char* data;
  int64_t element_bytes;
};

template <class A>
struct BlockOps {
  // z = scale * x, or scale * tanh(tanh_in * x) where tanh_in != 0; returns the largest z that is not NaN (-inf if there is none).
  A (*transform)(const A* x, A* z, int64_t count, A scale, A tanh_in);
  // With e = e^(z - top): out[0] += sum e, out[1] += sum e (z - top), out[2] += sum e^2; an element with e = 0 counts 0 in all.
  void (*sums)(const A* z, int64_t count, A top, Ahead ahead, double* out);
  // The gradient of every element as if none were the target; x and out may be the same memory.
  void (*gradient)(const A* x, A* out, int64_t count, const RowGradient<A>& row, Ahead ahead);
};

struct RowOps {
  BlockOps<float> f32;
  BlockOps<double> f64;
  void (*widen_bf16)(const uint16_t* from, float* to, int64_t count);
  void (*widen_fp16)(const uint16_t* from, float* to, int64_t count);
  void (*narrow_bf16)(const float* from, uint16_t* to, int64_t count);
  void (*narrow_fp16)(const float* from, uint16_t* to, int64_t count);
};

} // namespace gigpo_rows
