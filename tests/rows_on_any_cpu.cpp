// The C++ rows without torch, for a compiler's sanitizers and for other processors: reads one call from stdin, writes its results to stdout.
// In: element, rows, columns, row stride (elements), instruction set; tanh_in; logits; then ids, scale, d_log_probs, d_entropy a row.
// Out: log-prob, maximum, log-sum, entropy and squares a row, in double; then the gradient, written over the logits.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../csrc/rows_isa.h"
#include "../csrc/rows_row.h"

using namespace gigpo_rows;

template <class T>
static std::vector<T> read(int64_t count) {
  std::vector<T> values(count);
  if (std::fread(values.data(), sizeof(T), count, stdin) != size_t(count)) std::exit(2);
  return values;
}

template <class T>
static void write(const std::vector<T>& values) {
  if (std::fwrite(values.data(), sizeof(T), values.size(), stdout) != values.size()) std::exit(3);
}

template <class A>
static void run(const RowOps& ops, const Matrix& logits, A tanh_in) {
  const auto ids = read<int64_t>(logits.rows);
  const auto scale = read<double>(logits.rows), c = read<double>(logits.rows), e = read<double>(logits.rows);
  std::vector<double> results;
  for (int64_t i = 0; i < logits.rows; ++i) {
    const RowResult<A> r = forward_row(ops, logits, i, ids[i], A(scale[i]), tanh_in);
    results.insert(results.end(), {double(r.log_prob), double(r.top), double(r.log_sum), double(r.entropy), double(r.squared)});
    const BackwardRow<A> row = {ids[i], A(scale[i]), r.top, r.log_sum, r.entropy, A(c[i]), A(e[i])};
    backward_row<A>(ops, logits, logits, i, i, 0, logits.columns, row, tanh_in);
  }
  write(results);
}

int main() {
  const auto header = read<int64_t>(5);
  const double tanh_in = read<double>(1)[0];
  const RowOps* ops = ops_of(header[4]);
  if (ops == nullptr) return 4;
  const Element element = Element(header[0]);
  // The last row ends with its last column: one step further is not this program's memory.
  const int64_t bytes = ((header[1] - 1) * header[3] + header[2]) * element_bytes(element);
  std::vector<char> memory = read<char>(bytes);
  const Matrix logits = {memory.data(), element, header[1], header[2], header[3] * element_bytes(element)};
  if (element == Element::fp64)
    run<double>(*ops, logits, tanh_in);
  else
    run<float>(*ops, logits, float(tanh_in));
  write(memory);
  return 0;
}
