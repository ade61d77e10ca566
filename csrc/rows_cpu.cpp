// The row kernels for CPUs: log-sum-exp, target log-probability, entropy and sum of squared probabilities of logits rows, and the
// gradient of the middle two.
// Torch operators on the stable ABI: arguments are checked here as far as memory safety needs it, messages for people are in Python.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "rows_isa.h"
#include "rows_row.h"

namespace {

using namespace gigpo_rows;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kColumnUnit = 64;  // columns are shared out in units of this, so that blocks keep their alignment
constexpr int64_t kGrain = 32768;    // elements below which another thread does not pay

Matrix matrix(const Tensor& t) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 2, "gigpo_fast_C rows: logits and out must be 2-d CPU tensors");
  Element element;
  switch (t.scalar_type()) {
    case ScalarType::Float: element = Element::fp32; break;
    case ScalarType::Double: element = Element::fp64; break;
    case ScalarType::BFloat16: element = Element::bf16; break;
    case ScalarType::Half: element = Element::fp16; break;
    default: STD_TORCH_CHECK(false, "gigpo_fast_C rows: logits and out must be float32, float64, bfloat16 or float16");
  }
  STD_TORCH_CHECK(t.size(1) > 0, "gigpo_fast_C rows: the vocabulary must not be empty");
  STD_TORCH_CHECK(t.size(1) == 1 || t.stride(1) == 1, "gigpo_fast_C rows: stride(1) must be 1");
  return {static_cast<char*>(t.data_ptr()), element, t.size(0), t.size(1), t.stride(0) * element_bytes(element)};
}

template <class T>
T* per_row(const Tensor& t, ScalarType type, int64_t rows) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 1 && t.size(0) == rows, "gigpo_fast_C rows: per-row tensors must be 1-d, one value a row");
  STD_TORCH_CHECK(t.scalar_type() == type, "gigpo_fast_C rows: a per-row tensor has the wrong dtype");
  STD_TORCH_CHECK(rows <= 1 || t.stride(0) == 1, "gigpo_fast_C rows: per-row tensors must be contiguous");
  return static_cast<T*>(t.data_ptr());
}

// The log-sum-exp of a row travels as two numbers side by side.
template <class A>
A* per_row_pair(const Tensor& t, ScalarType type, int64_t rows) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 2 && t.size(0) == rows && t.size(1) == 2, "gigpo_fast_C rows: lse must be (rows, 2)");
  STD_TORCH_CHECK(t.scalar_type() == type, "gigpo_fast_C rows: lse has the wrong dtype");
  STD_TORCH_CHECK(rows == 0 || (t.stride(1) == 1 && (rows == 1 || t.stride(0) == 2)), "gigpo_fast_C rows: lse must be contiguous");
  return static_cast<A*>(t.data_ptr());
}

template <class A>
constexpr ScalarType arithmetic_type() {
  return std::is_same<A, double>::value ? ScalarType::Double : ScalarType::Float;
}

const RowOps& row_ops(int64_t isa) {
  const RowOps* ops = ops_of(isa);
  STD_TORCH_CHECK(ops != nullptr, "gigpo_fast_C rows: this machine lacks the instruction set asked for");
  return *ops;
}

template <class A>
void forward(const RowOps& ops, const Matrix& logits, const Tensor& token_ids, const Tensor& scale, A tanh_in,
             const Tensor& log_probs, const Tensor& lse, const Tensor& entropy, const Tensor& squared) {
  const int64_t* token = per_row<int64_t>(token_ids, ScalarType::Long, logits.rows);
  const A* s = per_row<A>(scale, arithmetic_type<A>(), logits.rows);
  A* to_log_prob = per_row<A>(log_probs, arithmetic_type<A>(), logits.rows);
  A* to_lse = per_row_pair<A>(lse, arithmetic_type<A>(), logits.rows);
  A* to_entropy = per_row<A>(entropy, arithmetic_type<A>(), logits.rows);
  A* to_squared = per_row<A>(squared, arithmetic_type<A>(), logits.rows);
  const int64_t grain = std::max<int64_t>(1, kGrain / logits.columns);
  torch::stable::parallel_for(0, logits.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const RowResult<A> r = forward_row(ops, logits, i, token[i], s[i], tanh_in);
      to_log_prob[i] = r.log_prob;
      to_lse[2 * i] = r.top;
      to_lse[2 * i + 1] = r.log_sum;
      to_entropy[i] = r.entropy;
      to_squared[i] = r.squared;
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> rows_forward(
    const Tensor& logits, const Tensor& token_ids, const Tensor& scale, double tanh_in, int64_t isa) {
  const RowOps& ops = row_ops(isa);
  const Matrix m = matrix(logits);
  const bool wide = m.element == Element::fp64;
  const auto type = wide ? ScalarType::Double : ScalarType::Float;
  Tensor log_probs = torch::stable::empty({m.rows}, type);
  Tensor lse = torch::stable::empty({m.rows, 2}, type);
  Tensor entropy = torch::stable::empty({m.rows}, type);
  Tensor squared = torch::stable::empty({m.rows}, type);
  if (m.rows > 0 && wide) forward<double>(ops, m, token_ids, scale, tanh_in, log_probs, lse, entropy, squared);
  if (m.rows > 0 && !wide) forward<float>(ops, m, token_ids, scale, float(tanh_in), log_probs, lse, entropy, squared);
  return {log_probs, lse, entropy, squared};
}

// Shared memory is legal in two forms: the same place with the same type and stride, or columns of one buffer that lie beside each other.
void check_overlap(const Matrix& logits, const Matrix& out) {
  const auto width = [](const Matrix& m) { return m.columns * element_bytes(m.element); };
  const auto end = [&](const Matrix& m) { return m.data + (m.rows - 1) * m.row_bytes + width(m); };
  STD_TORCH_CHECK(out.rows == 1 || out.row_bytes >= width(out), "gigpo_fast_C rows_backward: rows of out must not overlap each other");
  if (end(logits) <= out.data || end(out) <= logits.data) return;
  const bool same_stride = logits.row_bytes == out.row_bytes || out.rows == 1;
  if (logits.data == out.data && logits.element == out.element && same_stride) return;
  if (logits.row_bytes == out.row_bytes) {
    const int64_t apart = ((out.data - logits.data) % out.row_bytes + out.row_bytes) % out.row_bytes;
    if (apart >= width(logits) && apart + width(out) <= out.row_bytes) return;
  }
  STD_TORCH_CHECK(false, "gigpo_fast_C rows_backward: out overlaps logits without being the same memory, dtype and row stride");
}

template <class A>
void backward(const RowOps& ops, const Matrix& logits, const Matrix& out, const Tensor& token_ids, const Tensor& scale, A tanh_in,
              const Tensor& lse, const Tensor& entropy, const Tensor& d_log_probs, const Tensor& d_entropy, const int64_t* source) {
  const int64_t rows = out.rows;
  const int64_t* token = per_row<int64_t>(token_ids, ScalarType::Long, rows);
  const A* s = per_row<A>(scale, arithmetic_type<A>(), rows);
  const A* l = per_row_pair<A>(lse, arithmetic_type<A>(), rows);
  const A* h = per_row<A>(entropy, arithmetic_type<A>(), rows);
  const A* c = per_row<A>(d_log_probs, arithmetic_type<A>(), rows);
  const A* e = per_row<A>(d_entropy, arithmetic_type<A>(), rows);
  const auto one_row = [&](int64_t i, int64_t begin, int64_t end) {
    const BackwardRow<A> row = {token[i], s[i], l[2 * i], l[2 * i + 1], h[i], c[i], e[i]};
    backward_row<A>(ops, logits, out, source ? source[i] : i, i, begin, end, row, tanh_in);
  };
  if (source == nullptr) {
    torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kGrain / out.columns), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) one_row(i, 0, out.columns);
    });
    return;
  }
  // Compaction in place: row i may lie on top of a row that is read by another i. Each thread owns columns and walks the rows in order.
  const int64_t units = (out.columns + kColumnUnit - 1) / kColumnUnit;
  const int64_t grain = std::max<int64_t>(1, kGrain / (kColumnUnit * rows));
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < rows; ++i) one_row(i, begin * kColumnUnit, std::min(end * kColumnUnit, out.columns));
  });
}

void rows_backward(
    const Tensor& logits, const Tensor& token_ids, const Tensor& scale, double tanh_in, const Tensor& lse, const Tensor& entropy,
    const Tensor& d_log_probs, const Tensor& d_entropy, const std::optional<Tensor>& source_rows, Tensor out, int64_t isa) {
  const RowOps& ops = row_ops(isa);
  const Matrix from = matrix(logits);
  const Matrix to = matrix(out);
  STD_TORCH_CHECK(from.columns == to.columns, "gigpo_fast_C rows_backward: out and logits must have the same number of columns");
  const int64_t* source = nullptr;
  if (source_rows.has_value()) {
    source = per_row<int64_t>(*source_rows, ScalarType::Long, to.rows);
    for (int64_t i = 0; i < to.rows; ++i) {
      STD_TORCH_CHECK(source[i] >= i && source[i] < from.rows && (i == 0 || source[i] > source[i - 1]),
                      "gigpo_fast_C rows_backward: source_rows must be strictly increasing rows of logits");
    }
  } else {
    STD_TORCH_CHECK(from.rows == to.rows, "gigpo_fast_C rows_backward: out must have a row for each row of logits");
  }
  if (to.rows == 0) return;
  check_overlap(from, to);
  if (from.element == Element::fp64)
    backward<double>(ops, from, to, token_ids, scale, tanh_in, lse, entropy, d_log_probs, d_entropy, source);
  else
    backward<float>(ops, from, to, token_ids, scale, float(tanh_in), lse, entropy, d_log_probs, d_entropy, source);
}

int64_t rows_isa() {
  return best_level();
}

} // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gigpo_fast_C, m) {
  // isa: -1 the best this machine has, else 0 baseline, 1 AVX2, 2 AVX-512 (for tests).
  m.def(
      "rows_forward(Tensor logits, Tensor token_ids, Tensor scale, float tanh_in, int isa=-1)"
      " -> (Tensor log_probs, Tensor lse, Tensor entropy, Tensor squared)");
  m.def(
      "rows_backward(Tensor logits, Tensor token_ids, Tensor scale, float tanh_in, Tensor lse, Tensor entropy, Tensor d_log_probs,"
      " Tensor d_entropy, Tensor? source_rows, Tensor(a!) out, int isa=-1) -> ()");
  m.def("rows_isa() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(gigpo_fast_C, CPU, m) {
  m.impl("rows_forward", TORCH_BOX(&rows_forward));
  m.impl("rows_backward", TORCH_BOX(&rows_backward));
}

STABLE_TORCH_LIBRARY_IMPL(gigpo_fast_C, CompositeExplicitAutograd, m) {
  m.impl("rows_isa", TORCH_BOX(&rows_isa));
}
