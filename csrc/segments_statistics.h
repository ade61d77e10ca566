// What is computed of one segment: discounted sums, and count, mean and standard deviation.
//
// The sum of a segment is the sum of two integers for each value, of 31 and 32 bits, after a power of two has brought the values below 1.
// Integer sums have no order, so the result is the same for any order of the rows, on any path, to the last bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace gigpo_segments {

using i64 = int64_t;
using u64 = uint64_t;

inline u64 bits_of(double value) {
  u64 bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline double from_bits(u64 bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The power of two that brings numbers up to `size` below 1 (the largest floats below 4), and its inverse; both exact.
struct UnitScale {
  double scale;
  double unscale;
  explicit UnitScale(double size) {
    const u64 exponent = std::min<u64>(std::max<u64>(bits_of(size) >> 52, 1), 2044);
    scale = from_bits((2045 - exponent) << 52);
    unscale = from_bits((exponent + 1) << 52);
  }
};

// The sum of values below 4. Adding and subtracting kRound rounds to an integer, which then stands in the lowest bits.
class ExactSum {
 public:
  void add(double value) {
    const double scaled = value * 0x1p31;
    const double shifted = scaled + kRound;
    high_ += bits_of(shifted) - bits_of(kRound);
    low_ += bits_of((scaled - (shifted - kRound)) * 0x1p32 + kRound) - bits_of(kRound);
  }
  double value() const { return (double(i64(high_)) + double(i64(low_)) * 0x1p-32) * 0x1p-31; }

 private:
  static constexpr double kRound = 0x1.8p52;
  u64 high_ = 0, low_ = 0;
};

// The sum of finite values, to be multiplied by `unscale`; or, where a value is not finite, what their sum would be: infinite, or NaN.
struct ScaledSum {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  double sum = 0;
  double unscale = 1;

  ScaledSum(const double* values, i64 count) {
    bool ordered = true;
    for (i64 i = 0; i < count; ++i) {
      low = values[i] < low ? values[i] : low;
      high = values[i] > high ? values[i] : high;
      ordered &= values[i] == values[i];
    }
    if (!ordered) low = high = std::numeric_limits<double>::quiet_NaN();
    if (count == 0) return;
    if (!std::isfinite(low) || !std::isfinite(high)) {
      sum = low + high;
      return;
    }
    const UnitScale size(std::max(std::fabs(low), std::fabs(high)));
    ExactSum exact;
    for (i64 i = 0; i < count; ++i) exact.add(values[i] * size.scale);
    sum = exact.value();
    unscale = size.unscale;
  }
};

inline double total_of(const double* values, i64 count) {
  const ScaledSum found(values, count);
  return found.sum * found.unscale;
}

struct Moments {
  double count = 0, mean = 0, std = 0;
  bool flat = false;
};

inline Moments moments_of(const double* values, i64 count, i64 ddof) {
  Moments result;
  if (count == 0) return result;
  const ScaledSum found(values, count);
  result.count = double(count);
  result.flat = found.low == found.high;
  result.mean = result.flat ? found.low : found.sum / result.count * found.unscale;
  if (result.flat) return result;
  const double farthest = std::max(found.high - result.mean, result.mean - found.low);
  if (!std::isfinite(farthest)) {
    result.std = std::numeric_limits<double>::quiet_NaN();
    return result;
  }
  const UnitScale spread(farthest);
  ExactSum squares;
  for (i64 i = 0; i < count; ++i) {
    const double deviation = (values[i] - result.mean) * spread.scale;
    squares.add(deviation * deviation);
  }
  result.std = std::sqrt(squares.value() / double(std::max<i64>(count - ddof, 1))) * spread.unscale;
  return result;
}

// A product fused into its sum would round differently on machines that can, and there in vector bodies and tails.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif
inline void add_discounted(const double* __restrict values, const double* __restrict ahead, double power, i64 count, double* __restrict to) {
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif
  for (i64 i = 0; i < count; ++i) to[i] = values[i] + power * ahead[i];
}
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif

// Discounted sums of values[0 .. count), in one of the two buffers, which is returned. powers[k] = gamma^(2^k): after the pass with
// stride d every place holds the sum of the next 2d values.
inline const double* discounted_sums_of(double* values, double* spare, i64 count, const double* powers, i64 passes) {
  for (i64 pass = 0; pass < passes && (i64(1) << pass) < count; ++pass) {
    const i64 stride = i64(1) << pass;
    add_discounted(values, values + stride, powers[pass], count - stride, spare);
    std::memcpy(spare + count - stride, values + count - stride, size_t(stride) * sizeof(double));
    std::swap(values, spare);
  }
  return values;
}

}  // namespace gigpo_segments
