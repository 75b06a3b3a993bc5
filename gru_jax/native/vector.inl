// Vectors of float32 in the extensions of GCC and Clang, and the activations on them.

#if GRU_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kRegisters = 32, kMaxTileRows = 8;  // kMaxTileRows: of a product
#else
constexpr int kRegisters = 16, kMaxTileRows = 4;
#endif
constexpr int kLanes = GRU_VECTOR_BYTES / 4;

typedef float V __attribute__((vector_size(GRU_VECTOR_BYTES)));
typedef int32_t Bits __attribute__((vector_size(GRU_VECTOR_BYTES)));
typedef float Unaligned __attribute__((vector_size(GRU_VECTOR_BYTES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

// body(i), body(i, j) or body(i, j, k) for all 0 ≤ i < I and so on, the last index first. The loops are unrolled, so
// that arrays which `body`, an INLINE_LAMBDA, indexes stay in registers. They are nested here: of calls that are
// nested, GCC 12 spills sums, and a state recurrence that resets before takes 1.28 times as long (AVX2, D = 64, H =
// 128).
template <int I, int J = 0, int K = 0, class Body>
INLINE void unrolled(const Body& body) {
#pragma GCC unroll 8
  for (int i = 0; i < I; ++i) {
    if constexpr (J == 0) {
      body(i);
    } else {
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) {
        if constexpr (K == 0) {
          body(i, j);
        } else {
#pragma GCC unroll 8
          for (int k = 0; k < K; ++k) body(i, j, k);
        }
      }
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

// A store that bypasses the caches and does not first read the memory that it overwrites. `p` must be aligned. It pays
// only where a vector is a whole cache line. `fence` orders it before what follows.
#if GRU_VECTOR_BYTES == 64
constexpr bool kStreams = true;
INLINE void stream(float* p, V v) { _mm512_stream_ps(p, (__m512)v); }
INLINE void fence() { _mm_sfence(); }
#else
constexpr bool kStreams = false;
INLINE void stream(float* p, V v) { store(p, v); }
INLINE void fence() {}
#endif

INLINE V splat(float x) { return x - V{}; }  // and not x + V{}, which would make 0 of −0

// x within [−bound, bound]; a NaN stays one. The intrinsics are faster than the portable form's comparisons and
// selections.
INLINE V clamped(V x, float bound) {
#if GRU_VECTOR_BYTES == 64
  // The masked intrinsics, as GCC 12 warns of the plain ones.
  const __m512 high = (__m512)splat(bound), low = (__m512)splat(-bound);
  return (V)_mm512_maskz_max_ps(0xffff, low, _mm512_maskz_min_ps(0xffff, high, (__m512)x));
#elif GRU_VECTOR_BYTES == 32
  return (V)_mm256_max_ps((__m256)splat(-bound), _mm256_min_ps((__m256)splat(bound), (__m256)x));
#else
  x = x > bound ? splat(bound) : x;
  return x < -bound ? splat(-bound) : x;
#endif
}

// eˣ with a relative error of about 2e-7 in [−87, 88]. Above, it is the value at 88; below −88 it is 0. A NaN stays
// one.
INLINE V exponential(V x) {
  x = clamped(x, 88.0f);
  // eˣ = 2^(n + f), n an integer. Adding and subtracting 1.5·2²³ rounds; n is then in the low bits of `shifted`.
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

// Numerator and denominator of tanh x = x P(x²) / Q(x²), a minimax fit with a relative error of 1.3e-8 on [−8, 8].
// Beyond, it is the value at ±8, ±(1 − 2e-7). The denominator lies in [1, 250]. A NaN stays one.
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

// σ and 1 − σ, each to full relative precision, and the derivative of σ. Where σ is saturated the derivative is exactly
// 0, for it is multiplied by weights, which may be huge.
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

// The activations of a candidate: `ratio` as a ratio whose denominator lies in [1, 250]; `with_slope` as a value and
// its derivative, which is exactly 0 where the activation is saturated.
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
    return {x < 0.0f ? e : splat(1.0f), 1.0f + e};
  }

  static INLINE_MEMBER ValueSlope with_slope(V x) {
    Gate sigmoid = gate_of(x);
    return {sigmoid.value, sigmoid.slope};
  }
};
