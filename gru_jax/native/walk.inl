// How a part of a sequence is walked through: order of the steps, states before a step, scratch.

constexpr int kChunk = 128;  // rows, at most, over steps and sequences, that are held in the second-level cache at a time

// Slices of scratch memory, each aligned to a cache line.
struct Arena {
  float* memory;
  int64_t used = 0;

  float* take(int64_t n) {
    float* slice = memory + used;
    used += (n + 15) / 16 * 16;
    return slice;
  }
};

// A distance of rows, at least n, that is an odd number of cache lines, so that columns spread over all sets of the cache.
INLINE int64_t spread(int64_t n) { return (n + 15) / 16 % 2 ? (n + 15) / 16 * 16 : (n + 15) / 16 * 16 + 16; }

INLINE int64_t steps_per_chunk(const Sizes& sizes) { return sizes.rows < kChunk ? kChunk / sizes.rows : 1; }

static int64_t chunks(const Sizes& sizes) {
  const int64_t steps = steps_per_chunk(sizes);
  return (sizes.steps + steps - 1) / steps;
}

// The time at which the s-th step in the direction of the recurrence happens.
INLINE int64_t time_of(const Sizes& sizes, int64_t s) { return sizes.reverse ? sizes.steps - 1 - s : s; }

INLINE const float* row_of(const Series& series, int64_t t, int64_t row, int64_t width) {
  return series.data + t * series.step + row * width;
}

INLINE bool flag(const Flags& flags, int64_t t, int64_t row, bool otherwise) {
  return flags.data ? flags.data[t * flags.step + row] : otherwise;
}

// The flags of all rows at a time; null where there are none.
INLINE const uint8_t* flags_at(const Flags& flags, int64_t t) { return flags.data ? flags.data + t * flags.step : nullptr; }

// The state before step s of a row: that of the step before, h_0 at the first one, or the reset state where it is reset.
INLINE const float* state_before(const Recurrence& in, const Series& hs, int64_t s, int64_t row) {
  const Sizes& sizes = in.sizes;
  if (flag(in.resets, time_of(sizes, s), row, false)) return in.reset_state + row * in.reset_row;
  return s == 0 ? in.h_0 + row * sizes.features : row_of(hs, time_of(sizes, s - 1), row, sizes.features);
}

INLINE bool meet(Share& share) { return share.members == 1 || share.meet(share); }

// The columns of blocks, of n that there are.
INLINE Span columns_of(Span blocks, int64_t n) { return {least(blocks.first * kLanes, n), least(blocks.end * kLanes, n)}; }

INLINE void clear(float* to, int64_t rows, int64_t stride, Span columns) {
  for (int64_t row = 0; row < rows; ++row) {
    __builtin_memset(to + row * stride + columns.first, 0, columns.count() * sizeof(float));
  }
}

INLINE void copy(const float* from, float* to, int64_t n) { __builtin_memcpy(to, from, n * sizeof(float)); }

INLINE void times(const float* a, const float* b, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = a[i] * b[i];
}
