// Chunks of time: the order of steps, the state before a step, scratch memory.

// The most rows of a chunk, over steps and sequences: their arrays fit in the second-level cache.
constexpr int kChunk = 128;

// Allocates slices of scratch memory, each aligned to a cache line.
struct Arena {
  float* memory;
  int64_t used = 0;

  float* alloc(int64_t n) {
    float* slice = memory + used;
    used += (n + 15) / 16 * 16;
    return slice;
  }
};

// A distance between rows of at least n floats: an odd number of cache lines, so that a column spreads over all sets of
// a cache.
INLINE int64_t padded_stride(int64_t n) { return (n + 15) / 16 % 2 ? (n + 15) / 16 * 16 : (n + 15) / 16 * 16 + 16; }

INLINE int64_t steps_per_chunk(const Sizes& sizes) { return sizes.rows < kChunk ? kChunk / sizes.rows : 1; }

static int64_t chunks(const Sizes& sizes) {
  const int64_t steps = steps_per_chunk(sizes);
  return (sizes.steps + steps - 1) / steps;
}

// The time of the s-th step in the direction of the recurrence.
INLINE int64_t time_of(const Sizes& sizes, int64_t s) { return sizes.reverse ? sizes.steps - 1 - s : s; }

INLINE const float* row_of(const Series& series, int64_t t, int64_t row, int64_t width) {
  return series.data + t * series.step + row * width;
}

INLINE bool flag(const Flags& flags, int64_t t, int64_t row, bool otherwise) {
  return flags.data ? flags.data[t * flags.step + row] : otherwise;
}

// The flags of all rows at one time; null where they are not given.
INLINE const uint8_t* flags_at(const Flags& flags, int64_t t) {
  return flags.data ? flags.data + t * flags.step : nullptr;
}

// The state before step s of a row: the reset state where the row is reset, h_0 at the first step, else the state
// before.
INLINE const float* state_before(const Recurrence& in, const Series& hs, int64_t s, int64_t row) {
  const Sizes& sizes = in.sizes;
  if (flag(in.resets, time_of(sizes, s), row, false)) return in.reset_state + row * in.reset_row;
  return s == 0 ? in.h_0 + row * sizes.features : row_of(hs, time_of(sizes, s - 1), row, sizes.features);
}

INLINE bool barrier(WorkShare& share) { return share.members == 1 || share.barrier(share); }

// The columns of a range of blocks, of n columns in all.
INLINE Span columns_of(Span blocks, int64_t n) { return {min(blocks.first * kLanes, n), min(blocks.end * kLanes, n)}; }

INLINE void clear(float* to, int64_t rows, int64_t stride, Span columns) {
  for (int64_t row = 0; row < rows; ++row) {
    __builtin_memset(to + row * stride + columns.first, 0, columns.count() * sizeof(float));
  }
}

INLINE void copy(const float* from, float* to, int64_t n) { __builtin_memcpy(to, from, n * sizeof(float)); }

INLINE void elementwise_product(const float* a, const float* b, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = a[i] * b[i];
}
