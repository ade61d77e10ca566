// One row forward, one stretch of a row backward: the scalar frame around the vector formulas.
#pragma once

#include <algorithm>
#include <limits>

#include "rows_block.h"

namespace gigpo_rows {

template <class A>
struct RowResult {
  A log_prob;
  A top;      // the largest z, and
  A log_sum;  // the log of the sum of e^(z - top): together the log-sum-exp, which in one number would lose digits
  A entropy;
  A squared;  // sum of p^2
};

// One pass over memory. Per block: transform, maximum, then sums around the running maximum, which are kept in double between blocks.
// Entropy = log(weight) - weighted / weight, centred on the maximum: both terms are >= 0, so nothing cancels.
template <class A>
RowResult<A> forward_row(const RowOps& ops, const Matrix& logits, int64_t row, int64_t token, A scale, A tanh_in) {
  const BlockOps<A>& block_op = block_ops(ops, A());
  const A none = -std::numeric_limits<A>::infinity();
  alignas(64) A scratch[kBlock];
  alignas(64) A z[kBlock];
  A top = none;
  A target = std::numeric_limits<A>::quiet_NaN();  // stays for a token outside the vocabulary
  double sums[3] = {0.0, 0.0, 0.0};                 // of e^(z - top), of e^(z - top) (z - top), and of e^(z - top) squared
  for (int64_t column = 0; column < logits.columns; column += kBlock) {
    const int64_t count = std::min(kBlock, logits.columns - column);
    const A* x = load_block(ops, logits, row, column, count, scratch);
    const A block_top = block_op.transform(x, z, padded(count), scale, tanh_in);
    if (token >= column && token < column + count) target = z[token - column];
    std::fill(z + count, z + padded(count), none);
    if (block_top > top) {
      if (top > none) {
        const double shift = double(top) - double(block_top);
        const double factor = std::exp(shift);
        sums[1] = factor * (sums[1] + shift * sums[0]);
        sums[0] *= factor;
        sums[2] *= factor * factor;
      }
      top = block_top;
    }
    const A centre = top > none ? top : A(0);  // 0 while all is -inf: -inf - -inf would be NaN
    block_op.sums(z, padded(count), centre, ahead(logits, row, column + count), sums);
  }
  const double log_sum = std::log(sums[0]);
  const double entropy = log_sum - sums[1] / sums[0];
  return {
      A((double(target) - double(top)) - log_sum),  // the maximum leaves first, so a common offset costs no digits
      top,
      A(log_sum),
      A(entropy < 0.0 ? 0.0 : entropy),  // rounding; NaN stays
      A(sums[2] / (sums[0] * sums[0])),
  };
}

template <class A>
struct BackwardRow {
  int64_t token;
  A scale;
  A top;
  A log_sum;
  A entropy;
  A d_log_prob;
  A d_entropy;
};

// The gradient at the target: -c expm1(log p) where the general form would lose 1 - p for p near 1.
template <class A>
A target_gradient(const RowOps& ops, const BackwardRow<A>& row, A x, A tanh_in) {
  alignas(64) A lanes[kPad];
  std::fill(lanes, lanes + kPad, x);
  block_ops(ops, A()).transform(lanes, lanes, kPad, row.scale, tanh_in);  // bit for bit the forward's z
  const double log_p = (double(lanes[0]) - double(row.top)) - double(row.log_sum);
  const double p = std::exp(log_p);
  double g = -double(row.d_log_prob) * std::expm1(log_p);
  if (row.d_entropy != A(0) && p != 0.0) g -= double(row.d_entropy) * p * (log_p + double(row.entropy));
  if (tanh_in != A(0)) {
    const double e = std::exp(-2.0 * std::fabs(double(tanh_in) * double(x)));
    g *= double(tanh_in) * 4.0 * e / ((1.0 + e) * (1.0 + e));
  }
  return A(g * double(row.scale));
}

// Columns [begin, end) of row `to` of `out` from row `from` of `logits`. Each block is read before it is written.
template <class A>
void backward_row(
    const RowOps& ops, const Matrix& logits, const Matrix& out, int64_t from, int64_t to, int64_t begin, int64_t end,
    const BackwardRow<A>& row, A tanh_in) {
  if (row.d_log_prob == A(0) && row.d_entropy == A(0)) {  // exact zeros, whatever the logits hold
    std::memset(out.at(to, begin), 0, (end - begin) * element_bytes(out.element));
    return;
  }
  const BlockOps<A>& block_op = block_ops(ops, A());
  const double c = row.d_log_prob;
  const double e = row.d_entropy;
  const double chain = double(row.scale) * (tanh_in != A(0) ? double(tanh_in) : 1.0);
  const double pull = e == 0.0 ? c : c + e * double(row.entropy);  // an unused entropy may hold anything
  const RowGradient<A> general = {row.scale, tanh_in, row.top, row.log_sum, A(-pull * chain), A(-e * chain)};
  alignas(64) A in_scratch[kBlock];
  alignas(64) A out_scratch[kBlock];
  for (int64_t column = begin; column < end; column += kBlock) {
    const int64_t count = std::min(kBlock, end - column);
    const A* x = load_block(ops, logits, from, column, count, in_scratch);
    A* g = result_place(out, to, column, count, out_scratch);
    const bool has_target = row.token >= column && row.token < column + count;
    const A at_target = has_target ? target_gradient(ops, row, x[row.token - column], tanh_in) : A(0);
    block_op.gradient(x, g, padded(count), general, ahead(logits, from, column + count));
    if (has_target) g[row.token - column] = at_target;
    store_block(ops, out, to, column, count, g);
  }
}

} // namespace gigpo_rows
