// Vectors of float32 in the extensions of GCC and Clang, and the activations on them.

#if GRU_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kRegisters = 32, kTall = 8;  // kTall: rows of the tallest tile of a product
#else
constexpr int kRegisters = 16, kTall = 4;
#endif
constexpr int kLanes = GRU_VECTOR_BYTES / 4;

typedef float V __attribute__((vector_size(GRU_VECTOR_BYTES)));
typedef int32_t Bits __attribute__((vector_size(GRU_VECTOR_BYTES)));
typedef float Unaligned __attribute__((vector_size(GRU_VECTOR_BYTES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

// body(i, j, …) for all 0 ≤ i < N and so on; the last index changes first. The loops are unrolled, so that arrays which `body` indexes
// stay in registers. `body` is an INLINE_LAMBDA.
template <int N, int... kMore, class Body>
INLINE void unrolled(const Body& body) {
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    if constexpr (sizeof...(kMore) == 0) {
      body(i);
    } else {
      unrolled<kMore...>([&](auto... more) INLINE_LAMBDA { body(i, more...); });
    }
  }
}

INLINE V load(const float* p) { return *(const Unaligned*)p; }
INLINE void store(float* p, V v) { *(Unaligned*)p = v; }

// The first n lanes; the others are zero.
INLINE V load(const float* p, int64_t n) {
  if (n >= kLanes) return load(p);
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}

INLINE void store(float* p, V v, int64_t n) {
  if (n >= kLanes) return store(p, v);
  float lanes[kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// A store that does not first read what was in memory, and leaves the caches to others. `p` must be aligned, and all of a cache line
// be written so, one store after the other: so vectors must be as long as one. `fence` orders it before what follows.
#if GRU_VECTOR_BYTES == 64
constexpr bool kStreams = true;
INLINE void stream(float* p, V v) { _mm512_stream_ps(p, (__m512)v); }
INLINE void fence() { _mm_sfence(); }
#else
constexpr bool kStreams = false;
INLINE void stream(float* p, V v) { store(p, v); }
INLINE void fence() {}
#endif

INLINE V all(float x) { return x - V{}; }

// x within [−bound, bound]; a NaN stays one. Two comparisons and selections, as the portable form compiles to, take longer.
INLINE V clamped(V x, float bound) {
#if GRU_VECTOR_BYTES == 64
  // Those with a mask, as GCC 12 warns of the others.
  const __m512 high = (__m512)all(bound), low = (__m512)all(-bound);
  return (V)_mm512_maskz_max_ps(0xffff, low, _mm512_maskz_min_ps(0xffff, high, (__m512)x));
#elif GRU_VECTOR_BYTES == 32
  return (V)_mm256_max_ps((__m256)all(-bound), _mm256_min_ps((__m256)all(bound), (__m256)x));
#else
  x = x > bound ? all(bound) : x;
  return x < -bound ? all(-bound) : x;
#endif
}

// eˣ to a relative error of about 2e-7, in [−87, 88]; above, its value at 88; 0 from −88 on. A NaN stays one.
INLINE V exponential(V x) {
  x = clamped(x, 88.0f);
  // 2^(n + f), n an integer: adding and subtracting 1.5·2²³ rounds, and leaves n in the low bits.
  V t = x * 1.44269504f;
  V shifted = t + 12582912.0f;
  V f = t - (shifted - 12582912.0f);
  V p = f * 1.32647314e-3f + 9.67151273e-3f;
  p = p * f + 5.55073373e-2f;
  p = p * f + 2.40222421e-1f;
  p = p * f + 6.93146978e-1f;
  p = p * f + 1.0f;
  return p * (V)(((Bits)shifted << 23) + 0x3f800000);
}

// Numerator and denominator of tanh x = x P(x²) / Q(x²), a minimax fit to a relative error of 1.3e-8 on [−8, 8]; beyond, its
// value at 8, which is 1 − 2e-7. The denominator lies in [1, 250]. A NaN stays one.
struct Ratio {
  V numerator, denominator;
};

constexpr float kTanhBound = 8.0f;

INLINE Ratio tanh_ratio(V x) {
  x = clamped(x, kTanhBound);
  V y = x * x;
  V p = y * 1.4525270e-8f + 2.1440408e-5f;
  V q = y * 8.2511873e-7f + 3.3679034e-4f;
  p = p * y + 3.5457789e-3f;
  q = q * y + 2.6067746e-2f;
  p = p * y + 1.3423236e-1f;
  q = q * y + 4.6756567e-1f;
  p = p * y + 1.0f;
  q = q * y + 1.0f;
  return {x * p, q};
}

// A gate from its preactivation, with 1 − σ beside it, each to full relative precision, and its derivative. Where a gate is
// saturated the derivative is 0, not only small: it is multiplied by weights and their products, however large.
struct Gate {
  V value, rest, slope;
};

// e^(−|x|)
INLINE V exponential_of_minus_abs(V x) {
  constexpr int32_t kSign = INT32_MIN;
  return exponential((V)((Bits)x | kSign));
}

INLINE Gate gate_of(V a) {
  V e = exponential_of_minus_abs(a), large = 1.0f / (1.0f + e), small = e * large;
  return {a < 0.0f ? small : large, a < 0.0f ? large : small, small * large};
}

struct ValueSlope {
  V value, slope;
};

// The activations of a candidate: as a ratio, whose denominator lies in [1, 250], and as a value with its derivative, which is 0
// where the activation is saturated.
struct Tanh {
  static INLINE_MEMBER Ratio ratio(V x) { return tanh_ratio(x); }

  static INLINE_MEMBER ValueSlope with_slope(V x) {
    Ratio tanh = tanh_ratio(x);
    V value = tanh.numerator / tanh.denominator;
    return {value, x * x > kTanhBound * kTanhBound ? V{} : 1.0f - value * value};
  }
};

struct Sigmoid {
  static INLINE_MEMBER Ratio ratio(V x) {
    V e = exponential_of_minus_abs(x);
    return {x < 0.0f ? e : all(1.0f), 1.0f + e};
  }

  static INLINE_MEMBER ValueSlope with_slope(V x) {
    Gate sigmoid = gate_of(x);
    return {sigmoid.value, sigmoid.slope};
  }
};
