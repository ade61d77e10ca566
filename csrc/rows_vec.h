// The formulas of the row kernels, written once over vectors of ROWS_BYTES bytes (GCC/Clang vector extensions).
//
// No include guard: rows_cpu.cpp includes this file once per instruction set, with ROWS_ISA (a namespace), ROWS_TARGET (a function
// attribute) and ROWS_BYTES (16, 32 or 64) set. Every function carries ROWS_TARGET and is inlined into others that carry it, so no
// vector ever crosses a call. All counts are multiples of kPad. There is no fast-math: comparisons are arranged so that NaN passes.

namespace gigpo_rows {
namespace ROWS_ISA {

#define ROWS_INLINE static inline __attribute__((always_inline)) ROWS_TARGET

template <class A>
struct Lanes;

template <>
struct Lanes<float> {
  typedef float Vec __attribute__((vector_size(ROWS_BYTES)));
  typedef uint32_t Bits __attribute__((vector_size(ROWS_BYTES)));
  static constexpr int64_t kCount = ROWS_BYTES / 4;
};

template <>
struct Lanes<double> {
  typedef double Vec __attribute__((vector_size(ROWS_BYTES)));
  typedef uint64_t Bits __attribute__((vector_size(ROWS_BYTES)));
  static constexpr int64_t kCount = ROWS_BYTES / 8;
};

typedef Lanes<float>::Vec VecF;
typedef Lanes<double>::Vec VecD;
typedef Lanes<float>::Bits BitsF;
typedef uint16_t Halves __attribute__((vector_size(ROWS_BYTES / 2)));

template <class V, class T>
ROWS_INLINE V load(const T* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof v);  // unaligned
  return v;
}

template <class V, class T>
ROWS_INLINE void store(T* to, V v) {
  __builtin_memcpy(to, &v, sizeof v);
}

// The product as the forward stored it. The compiler would fuse it with the subtraction that follows and skip its rounding; the maximum
// was rounded, so p at the maximum would then be off by half a unit in the last place of z: 3e-5 where z is 1000.
template <class V>
ROWS_INLINE V rounded(V product) {
#if defined(__x86_64__)
  __asm__("" : "+v"(product));
#elif defined(__aarch64__)
  __asm__("" : "+w"(product));
#else
  __asm__("" : "+m"(product));
#endif
  return product;
}

ROWS_INLINE void fetch(Ahead ahead, int64_t element) {
  __builtin_prefetch(ahead.data + element * ahead.element_bytes);
}

// Below this, e^x is less than the smallest normal number and counts as exactly 0.
ROWS_INLINE VecF smallest_exponent(VecF) {
  return VecF{} - 87.3365447f;
}
ROWS_INLINE VecD smallest_exponent(VecD) {
  return VecD{} - 708.396418532264106;
}

// e^x for x in [-87.3, 88], off by less than one unit in the last place; the caller discards results outside. NaN gives NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2, then a polynomial in r (minimax for relative error, own fit, 3e-9).
ROWS_INLINE VecF exponential(VecF x) {
  const float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
  const VecF shifted = x * 1.44269504f + kRound;
  const VecF n = shifted - kRound;
  const VecF r = (x - n * 0.693145751953125f) - n * 1.42860682e-6f;  // ln 2 in two parts: n times the first is exact
  VecF tail = r * 1.3814464762e-3f + 8.3687806226e-3f;
  tail = tail * r + 4.1668394259e-2f;
  tail = tail * r + 1.6666520106e-1f;
  tail = tail * r + 4.9999993412e-1f;
  const VecF e = (r * r) * tail + r + 1.0f;
  const BitsF power = ((BitsF)shifted + 127u) << 23;  // 2^n; the constant's own bits leave at the top
  return e * (VecF)power;
}

ROWS_INLINE VecD exponential(VecD x) {
  VecD e{};
  for (int64_t i = 0; i < Lanes<double>::kCount; ++i) e[i] = std::exp(x[i]);
  return e;
}

// e^x, exactly 0 below the smallest normal number (and for -inf).
template <class V>
ROWS_INLINE V flushed_exponential(V x) {
  return x < smallest_exponent(x) ? V{} : exponential(x);
}

// tanh for |y| < 0.625, where 1 - e^(-2|y|) would cancel: odd polynomial (own fit, 4e-9).
ROWS_INLINE VecF small_tanh(VecF y) {
  const VecF u = y * y;
  VecF tail = u * -5.7026028591e-3f + 2.0637037285e-2f;
  tail = tail * u + -5.3739114482e-2f;
  tail = tail * u + 1.3331435363e-1f;
  tail = tail * u + -3.3333281705e-1f;
  return y * (u * tail) + y;
}

ROWS_INLINE VecD small_tanh(VecD y) {
  VecD t{};
  for (int64_t i = 0; i < Lanes<double>::kCount; ++i) t[i] = std::tanh(y[i]);
  return t;
}

template <class V>
struct Tanh {
  V value;
  V derivative;  // 4 E / (1 + E)^2 with E = e^(-2|y|): keeps its digits where 1 - tanh^2 has none left
};

template <class A>
ROWS_INLINE Tanh<typename Lanes<A>::Vec> tanh_of(typename Lanes<A>::Vec y) {
  typedef typename Lanes<A>::Vec V;
  typedef typename Lanes<A>::Bits Bits;
  const Bits minus = (Bits)(-V{});  // the sign bit of every lane
  const V magnitude = (V)((Bits)y & ~minus);
  const V e = flushed_exponential(magnitude * A(-2));
  const V rest = A(1) / (e + A(1));
  const V large = (V)((Bits)((A(1) - e) * rest) | ((Bits)y & minus));
  return {magnitude < A(0.625) ? small_tanh(y) : large, A(4) * e * rest * rest};
}

template <class A>
ROWS_TARGET static A transform(const A* x, A* z, int64_t count, A scale, A tanh_in) {
  typedef typename Lanes<A>::Vec V;
  constexpr int64_t L = Lanes<A>::kCount;
  const V none = V{} - A(INFINITY);
  V top[2] = {none, none};  // two chains, because one would wait for its own latency
  for (int64_t j = 0; j < count; j += 2 * L) {
    for (int64_t k = 0; k < 2; ++k) {
      V v = load<V>(x + j + k * L);
      if (tanh_in != A(0)) v = tanh_of<A>(v * tanh_in).value;
      v = v * scale;
      store(z + j + k * L, v);
      top[k] = v > top[k] ? v : top[k];
    }
  }
  V largest = top[1] > top[0] ? top[1] : top[0];
  for (int64_t half = L / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) largest[i] = largest[i + half] > largest[i] ? largest[i + half] : largest[i];
  }
  return largest[0];
}

// A sum and how far rounding has lifted it so far, by which the next addend is lowered (Kahan).
template <class V>
struct Sum {
  V value{}, excess{};
};

template <class V>
ROWS_INLINE void add(Sum<V>& sum, V addend) {
  const V lowered = addend - sum.excess;
  const V total = sum.value + lowered;
  sum.excess = (total - sum.value) - lowered;
  sum.value = total;
}

template <class A>
ROWS_TARGET static void sums(const A* z, int64_t count, A top, Ahead ahead, double* out) {
  typedef typename Lanes<A>::Vec V;
  constexpr int64_t L = Lanes<A>::kCount;
  constexpr int64_t kGroup = 8 * L;  // short sums of short sums: beside one large term, hundreds of tiny ones would each be rounded away
  Sum<V> weight, weighted, squared;
  for (int64_t start = 0; start < count; start += kGroup) {
    const int64_t end = start + kGroup < count ? start + kGroup : count;
    V group{}, group_weighted{}, group_squared{};
    for (int64_t j = start; j < end; j += L) {
      fetch(ahead, j);
      const V d = load<V>(z + j) - top;
      const auto vanishes = d < smallest_exponent(d);
      const V e = vanishes ? V{} : exponential(d);
      group = group + e;
      group_weighted = group_weighted + e * (vanishes ? V{} : d);
      group_squared = group_squared + e * e;
    }
    add(weight, group);
    add(weighted, group_weighted);
    add(squared, group_squared);
  }
  for (int64_t i = 0; i < L; ++i) {
    out[0] += double(weight.value[i]) - double(weight.excess[i]);
    out[1] += double(weighted.value[i]) - double(weighted.excess[i]);
    out[2] += double(squared.value[i]) - double(squared.excess[i]);
  }
}

template <class A>
ROWS_TARGET static void gradient(const A* x, A* out, int64_t count, const RowGradient<A>& row, Ahead ahead) {
  typedef typename Lanes<A>::Vec V;
  constexpr int64_t L = Lanes<A>::kCount;
  const RowGradient<A> r = row;  // a copy, because `out` might alias the argument as far as the compiler knows
  for (int64_t j = 0; j < count; j += L) {
    fetch(ahead, j);
    V v = load<V>(x + j);
    V chain{};
    if (r.tanh_in != A(0)) {
      const auto t = tanh_of<A>(v * r.tanh_in);
      v = t.value;
      chain = t.derivative;
    }
    const V log_p = (rounded(v * r.scale) - r.top) - r.log_sum;  // two steps: the first is nearly exact near the maximum
    const auto vanishes = log_p < smallest_exponent(log_p);
    const V p = vanishes ? V{} : exponential(log_p);
    V g = p * ((vanishes ? V{} : log_p) * r.slope + r.constant);
    if (r.tanh_in != A(0)) g = g * chain;
    store(out + j, g);
  }
}

ROWS_TARGET static void widen_bf16(const uint16_t* from, float* to, int64_t count) {
  for (int64_t j = 0; j < count; j += Lanes<float>::kCount) {
    store(to + j, __builtin_convertvector(load<Halves>(from + j), BitsF) << 16);
  }
}

// Half precision by integer arithmetic: exact, and independent of the processor's flush-to-zero setting.
ROWS_TARGET static void widen_fp16(const uint16_t* from, float* to, int64_t count) {
  typedef int32_t Ints __attribute__((vector_size(ROWS_BYTES)));
  for (int64_t j = 0; j < count; j += Lanes<float>::kCount) {
    const BitsF half = __builtin_convertvector(load<Halves>(from + j), BitsF);
    const BitsF magnitude = half & 0x7fffu;
    const VecF subnormal = __builtin_convertvector((Ints)magnitude, VecF) * 0x1p-24f;
    BitsF bits = (magnitude << 13) + (112u << 23);
    bits = magnitude >= 0x7c00u ? (magnitude << 13) | 0x7f800000u : bits;
    bits = magnitude < 0x0400u ? (BitsF)subnormal : bits;
    store(to + j, bits | ((half & 0x8000u) << 16));
  }
}

// Both narrowings round to nearest, ties to even, and keep NaN.
ROWS_TARGET static void narrow_bf16(const float* from, uint16_t* to, int64_t count) {
  for (int64_t j = 0; j < count; j += Lanes<float>::kCount) {
    const BitsF bits = load<BitsF>(from + j);
    const BitsF rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const BitsF kept = (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded;
    store(to + j, __builtin_convertvector(kept, Halves));
  }
}

ROWS_TARGET static void narrow_fp16(const float* from, uint16_t* to, int64_t count) {
  for (int64_t j = 0; j < count; j += Lanes<float>::kCount) {
    const BitsF bits = load<BitsF>(from + j);
    const BitsF magnitude = bits & 0x7fffffffu;
    BitsF half = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    const BitsF subnormal = (BitsF)((VecF)magnitude + 0.5f) - 0x3f000000u;  // the addition rounds at 2^-24
    half = magnitude < (113u << 23) ? subnormal : half;
    half = magnitude >= (143u << 23) ? BitsF{} + 0x7c00u : half;
    half = magnitude > 0x7f800000u ? BitsF{} + 0x7e00u : half;
    store(to + j, __builtin_convertvector(half | ((bits >> 16) & 0x8000u), Halves));
  }
}

static const RowOps kOps = {
    {transform<float>, sums<float>, gradient<float>},
    {transform<double>, sums<double>, gradient<double>},
    widen_bf16,
    widen_fp16,
    narrow_bf16,
    narrow_fp16,
};

#undef ROWS_INLINE

} // namespace ROWS_ISA
} // namespace gigpo_rows
