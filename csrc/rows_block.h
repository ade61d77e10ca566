// Moving one block of a row between a tensor of any float type and an array of the arithmetic type (float or double).
// Where the types agree and the block needs no padding, the tensor's own memory is used.
#pragma once

#include <cstring>
#include <type_traits>

#include "rows_ops.h"

namespace gigpo_rows {

enum class Element { fp32, fp64, bf16, fp16 };

inline int64_t element_bytes(Element element) {
  return element == Element::fp64 ? 8 : element == Element::fp32 ? 4 : 2;
}

struct Matrix {
  char* data;
  Element element;
  int64_t rows;
  int64_t columns;
  int64_t row_bytes;

  char* at(int64_t row, int64_t column) const {
    return data + row * row_bytes + column * element_bytes(element);
  }
};

template <class A>
constexpr Element arithmetic_element() {
  return std::is_same<A, double>::value ? Element::fp64 : Element::fp32;
}

inline const BlockOps<float>& block_ops(const RowOps& ops, float) {
  return ops.f32;
}
inline const BlockOps<double>& block_ops(const RowOps& ops, double) {
  return ops.f64;
}

inline Ahead ahead(const Matrix& m, int64_t row, int64_t column) {
  return {m.at(row, column), element_bytes(m.element)};
}

// `count` values from `from`, followed by copies of the last up to the padded count: they change no maximum.
template <class T>
inline const T* padded_copy(const char* from, int64_t count, T* scratch) {
  std::memcpy(scratch, from, count * sizeof(T));
  for (int64_t j = count; j < padded(count); ++j) scratch[j] = scratch[count - 1];
  return scratch;
}

// The block's values in the arithmetic type; `scratch` has kBlock places. Logits of fp64 use double, all others float.
template <class A>
const A* load_block(const RowOps& ops, const Matrix& m, int64_t row, int64_t column, int64_t count, A* scratch) {
  const char* from = m.at(row, column);
  const bool whole = count == padded(count);
  if constexpr (std::is_same<A, float>::value) {
    if (m.element != Element::fp32) {
      alignas(64) uint16_t halves[kBlock];
      const uint16_t* source = whole ? reinterpret_cast<const uint16_t*>(from) : padded_copy(from, count, halves);
      (m.element == Element::bf16 ? ops.widen_bf16 : ops.widen_fp16)(source, scratch, padded(count));
      return scratch;
    }
  }
  return whole ? reinterpret_cast<const A*>(from) : padded_copy(from, count, scratch);
}

// Where the block's results may be written: straight into the tensor, or into `scratch`. store_block then finishes either.
template <class A>
A* result_place(const Matrix& m, int64_t row, int64_t column, int64_t count, A* scratch) {
  const bool direct = m.element == arithmetic_element<A>() && count == padded(count);
  return direct ? reinterpret_cast<A*>(m.at(row, column)) : scratch;
}

// `values` holds padded(count) results.
template <class A>
void store_block(const RowOps& ops, const Matrix& m, int64_t row, int64_t column, int64_t count, const A* values) {
  char* to = m.at(row, column);
  if (to == reinterpret_cast<const char*>(values)) return;
  if (m.element == arithmetic_element<A>()) {
    std::memcpy(to, values, count * sizeof(A));
  } else if (m.element == Element::fp64) {
    for (int64_t j = 0; j < count; ++j) reinterpret_cast<double*>(to)[j] = values[j];
  } else if (m.element == Element::fp32) {
    for (int64_t j = 0; j < count; ++j) reinterpret_cast<float*>(to)[j] = static_cast<float>(values[j]);
  } else {
    alignas(64) float singles[kBlock];  // double goes to a half type by way of float, as in torch
    alignas(64) uint16_t halves[kBlock];
    const float* source = singles;
    if constexpr (std::is_same<A, float>::value) {
      source = values;
    } else {
      for (int64_t j = 0; j < padded(count); ++j) singles[j] = static_cast<float>(values[j]);
    }
    (m.element == Element::bf16 ? ops.narrow_bf16 : ops.narrow_fp16)(source, halves, padded(count));
    std::memcpy(to, halves, count * sizeof(uint16_t));
  }
}

} // namespace gigpo_rows
