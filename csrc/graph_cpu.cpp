// Distances to success in the graph of observed moves: one breadth-first search backwards, over every edge once.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace {

using i64 = int64_t;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const i64* states(const Tensor& t, i64 size) {
  STD_TORCH_CHECK(
      t.is_cpu() && t.dim() == 1 && t.scalar_type() == ScalarType::Long && t.is_contiguous(),
      "gigpo_fast_C graph_distances: source, target and goals must be contiguous 1-d int64 CPU tensors");
  const i64* values = static_cast<const i64*>(t.data_ptr());
  bool inside = true;
  for (i64 i = 0; i < t.numel(); ++i) inside &= values[i] >= 0 && values[i] < size;
  STD_TORCH_CHECK(inside, "gigpo_fast_C graph_distances: states must be numbers from 0 to size - 1");
  return values;
}

// (size,) moves from each state to success along edges source -> target; `goals` are one move away; -1: no path.
Tensor graph_distances(const Tensor& source, const Tensor& target, const Tensor& goals, int64_t size) {
  const i64 edges = source.numel();
  STD_TORCH_CHECK(size >= 0 && target.numel() == edges, "gigpo_fast_C graph_distances: source and target must be equally long");
  const i64 *from = states(source, size), *to = states(target, size), *goal = states(goals, size);
  // The sources of the edges into each state, one behind the other.
  std::vector<i64> begin(size_t(size) + 1, 0), into(static_cast<size_t>(edges));
  for (i64 e = 0; e < edges; ++e) ++begin[size_t(to[e]) + 1];
  for (i64 s = 0; s < size; ++s) begin[size_t(s) + 1] += begin[size_t(s)];
  std::vector<i64> next(begin.begin(), begin.end() - 1);
  for (i64 e = 0; e < edges; ++e) into[size_t(next[size_t(to[e])]++)] = from[e];

  Tensor result = torch::stable::empty({size}, ScalarType::Long);
  i64* distance = static_cast<i64*>(result.data_ptr());
  for (i64 s = 0; s < size; ++s) distance[s] = -1;
  std::vector<i64> queue;
  queue.reserve(size_t(size));
  const auto reach = [&](i64 state, i64 moves) {
    if (distance[state] >= 0) return;
    distance[state] = moves;
    queue.push_back(state);
  };
  for (i64 g = 0; g < goals.numel(); ++g) reach(goal[g], 1);
  for (size_t head = 0; head < queue.size(); ++head) {
    const i64 state = queue[head];
    for (i64 e = begin[size_t(state)]; e < begin[size_t(state) + 1]; ++e) reach(into[size_t(e)], distance[state] + 1);
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gigpo_fast_C, m) {
  m.def("graph_distances(Tensor source, Tensor target, Tensor goals, int size) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gigpo_fast_C, CPU, m) { m.impl("graph_distances", TORCH_BOX(&graph_distances)); }
