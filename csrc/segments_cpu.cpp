// Segments on a CPU: sorting rows by label, discounted sums and moments of every segment, on torch's own threads.
// A thread takes whole segments, those that begin in its part of the rows, so nothing is shared and nothing depends on their number.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <memory>
#include <tuple>
#include <vector>

#include "segments_sort.h"
#include "segments_statistics.h"

namespace {

using namespace gigpo_segments;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr i64 kGrain = i64(1) << 16;  // rows below which another thread does not pay

template <class T>
T* column(const Tensor& t, ScalarType type, i64 rows) {
  STD_TORCH_CHECK(
      t.is_cpu() && t.dim() == 1 && t.size(0) == rows && t.scalar_type() == type && t.is_contiguous(),
      "gigpo_fast_C segments: every tensor must be a contiguous 1-d CPU tensor of its dtype, all equally long");
  return static_cast<T*>(t.data_ptr());
}

std::vector<const i64*> columns(const std::vector<Tensor>& keys, i64 rows) {
  std::vector<const i64*> pointers;
  for (const Tensor& key : keys) pointers.push_back(column<const i64>(key, ScalarType::Long, rows));
  return pointers;
}

std::tuple<Tensor, Tensor, Tensor> segments_sort(std::vector<Tensor> labels, std::vector<Tensor> within) {
  STD_TORCH_CHECK(!labels.empty(), "gigpo_fast_C segments_sort: at least one label is needed");
  const i64 rows = labels[0].numel();
  const std::vector<const i64*> outer = columns(labels, rows), inner = columns(within, rows);
  Tensor order = torch::stable::empty({rows}, ScalarType::Long);
  Tensor segment = torch::stable::empty({rows}, ScalarType::Long);
  Tensor repeated = torch::stable::empty({}, ScalarType::Bool);
  *static_cast<bool*>(repeated.data_ptr()) =
      sort_segments(outer, inner, rows, static_cast<i64*>(order.data_ptr()), static_cast<i64*>(segment.data_ptr()));
  return {order, segment, repeated};
}

// Rows by segment. `order` addresses memory, and `segment` numbers the results, so both are checked here.
struct Segments {
  i64 rows;
  const i64* order;
  const i64* number;

  Segments(const Tensor& order_, const Tensor& segment_)
      : rows(order_.numel()), order(column<const i64>(order_, ScalarType::Long, rows)),
        number(column<const i64>(segment_, ScalarType::Long, rows)) {
    bool inside = true;
    for (i64 place = 0; place < rows; ++place) {
      const i64 before = place > 0 ? number[place - 1] : 0;
      inside &= u64(order[place]) < u64(rows) && (number[place] == before || (place > 0 && number[place] == before + 1));
    }
    STD_TORCH_CHECK(inside, "gigpo_fast_C segments: order and segment must be what segments_sort returned");
  }

  // Calls work(begin, end) for every segment, as places.
  template <class Work>
  void each(const Work& work_of_thread) const {
    torch::stable::parallel_for(0, rows, kGrain, [&](i64 begin, i64 end) {
      auto work = work_of_thread();
      while (begin > 0 && begin < end && number[begin] == number[begin - 1]) ++begin;
      while (begin < end) {
        i64 stop = begin + 1;
        while (stop < rows && number[stop] == number[begin]) ++stop;
        work(begin, stop);
        begin = stop;
      }
    });
  }
};

// Values and whether they are counted, by place. Gathered in a pass of their own, many rows in flight at once: rows may stand anywhere in
// memory, and a loop that does arithmetic or branches in between waits for each.
struct Gathered {
  std::unique_ptr<double[]> value;
  std::unique_ptr<bool[]> used;

  Gathered(const Tensor& values, const Tensor& counted, const Segments& segments)
      : value(new double[size_t(segments.rows)]), used(new bool[size_t(segments.rows)]) {
    const double* from = column<const double>(values, ScalarType::Double, segments.rows);
    const bool* which = column<const bool>(counted, ScalarType::Bool, segments.rows);
    torch::stable::parallel_for(0, segments.rows, kGrain, [&](i64 begin, i64 end) {
      for (i64 place = begin; place < end; ++place) value[place] = from[segments.order[place]];
      for (i64 place = begin; place < end; ++place) used[place] = which[segments.order[place]];
    });
  }

  // Moves the counted values of a segment to its begin; returns their number. A segment belongs to one thread.
  i64 pack(i64 begin, i64 end) const {
    i64 to = begin;
    for (i64 place = begin; place < end; ++place) {
      value[to] = value[place];
      to += used[place];
    }
    return to - begin;
  }
};

Tensor segments_discounted_sums(
    const Tensor& values, const Tensor& counted, const Tensor& order, const Tensor& segment, const Tensor& powers) {
  const Segments segments(order, segment);
  const Gathered gathered(values, counted, segments);
  const i64 passes = powers.numel();
  const double* power = column<const double>(powers, ScalarType::Double, passes);
  Tensor result = torch::stable::empty({segments.rows}, ScalarType::Double);
  double* sums = static_cast<double*>(result.data_ptr());
  segments.each([&] {
    return [&, spare = std::vector<double>()](i64 begin, i64 end) mutable {
      i64 counted_end = begin;
      while (counted_end < end && gathered.used[counted_end]) ++counted_end;
      const i64 count = counted_end - begin;
      spare.resize(std::max(spare.size(), size_t(count)));
      double* own = gathered.value.get() + begin;
      const double* found = discounted_sums_of(own, spare.data(), count, power, passes);
      for (i64 i = 0; i < end - begin; ++i) sums[segments.order[begin + i]] = i < count ? found[i] : own[i];
    };
  });
  return result;
}

Tensor segments_totals(const Tensor& values, const Tensor& counted, const Tensor& order, const Tensor& segment) {
  const Segments segments(order, segment);
  const Gathered gathered(values, counted, segments);
  Tensor result = torch::stable::empty({segments.rows}, ScalarType::Double);
  double* totals = static_cast<double*>(result.data_ptr());
  segments.each([&] {
    return [&](i64 begin, i64 end) {
      const double total = total_of(gathered.value.get() + begin, gathered.pack(begin, end));
      for (i64 place = begin; place < end; ++place) totals[segments.order[place]] = total;
    };
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> segments_moments(
    const Tensor& values, const Tensor& counted, const Tensor& order, const Tensor& segment, int64_t ddof) {
  const Segments segments(order, segment);
  const i64 rows = segments.rows;
  const Gathered gathered(values, counted, segments);
  Tensor counts = torch::stable::empty({rows}, ScalarType::Double), means = torch::stable::empty({rows}, ScalarType::Double);
  Tensor stds = torch::stable::empty({rows}, ScalarType::Double), flats = torch::stable::empty({rows}, ScalarType::Bool);
  Tensor numbers = torch::stable::empty({rows}, ScalarType::Long);
  double *count = static_cast<double*>(counts.data_ptr()), *mean = static_cast<double*>(means.data_ptr());
  double* std = static_cast<double*>(stds.data_ptr());
  bool* flat = static_cast<bool*>(flats.data_ptr());
  i64* number = static_cast<i64*>(numbers.data_ptr());
  std::vector<Moments> table(rows > 0 ? size_t(segments.number[rows - 1]) + 1 : 0);
  segments.each([&] {
    return [&](i64 begin, i64 end) {
      table[size_t(segments.number[begin])] = moments_of(gathered.value.get() + begin, gathered.pack(begin, end), ddof);
    };
  });
  torch::stable::parallel_for(0, rows, kGrain, [&](i64 begin, i64 end) {
    for (i64 place = begin; place < end; ++place) number[segments.order[place]] = segments.number[place];
  });
  // Rows may stand anywhere: read from the small table, and written in their own order, they cost far less than written by segment.
  torch::stable::parallel_for(0, rows, kGrain, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row) {
      const Moments& found = table[size_t(number[row])];
      count[row] = found.count, mean[row] = found.mean, std[row] = found.std, flat[row] = found.flat;
    }
  });
  return {counts, means, stds, flats, numbers};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gigpo_fast_C, m) {
  m.def("segments_sort(Tensor[] labels, Tensor[] within) -> (Tensor order, Tensor segment, Tensor repeated)");
  m.def("segments_discounted_sums(Tensor values, Tensor counted, Tensor order, Tensor segment, Tensor powers) -> Tensor");
  m.def(
      "segments_moments(Tensor values, Tensor counted, Tensor order, Tensor segment, int ddof)"
      " -> (Tensor count, Tensor mean, Tensor std, Tensor flat, Tensor number)");
  m.def("segments_totals(Tensor values, Tensor counted, Tensor order, Tensor segment) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gigpo_fast_C, CPU, m) {
  m.impl("segments_sort", TORCH_BOX(&segments_sort));
  m.impl("segments_discounted_sums", TORCH_BOX(&segments_discounted_sums));
  m.impl("segments_moments", TORCH_BOX(&segments_moments));
  m.impl("segments_totals", TORCH_BOX(&segments_totals));
}
