// The linear recurrence along a linearisation, y_t = J_t y_tm1 + s_t, and its transpose, of a block of rows.

struct LinearStep {
  const float* const* y_in;   // (rows) y_tm1, times the dropout mask
  const float* const* y_tm1;  // (rows)
  const float* const* z;      // (rows), as the other coefficients
  const float* const* r;
  const float* const* c_r;
  const float* const* c_z;
  const float* const* a_n;
  const float* source;
  const float* recurrent;
  float* gated;  // (rows, padded H): c_r ⊙ (y_in U_r) + r ⊙ y_in, reset before
  const float* const* gated_rows;
  float* partial;  // (rows, padded H): s + z ⊙ y_tm1 + c_z ⊙ (y_in U_z), reset before
  float* y_t;
  int64_t H, width;
  int64_t gate;  // the distance between two gates of `recurrent`

  INLINE_MEMBER V at(const float* const* rows, int64_t row, int64_t block) const {
    return load(rows[row] + block * kLanes, H - block * kLanes);
  }

  INLINE_MEMBER V source_at(int64_t row, int64_t block) const {
    return load(source + row * H + block * kLanes, H - block * kLanes);
  }
};

struct LinearStepAfter : LinearStep {
  template <int R, int P>
  INLINE_MEMBER void run(int64_t row, int64_t block) const {
    V acc[R][P][3] = {};
    multiply<R, P, 3>(y_in + row, H, recurrent + block * block_size(H), block_size(H), gate, acc);
    unrolled<R, P>([&](int i, int p) INLINE_LAMBDA {
      int64_t m = row + i, j = block + p;
      V y = source_at(m, j) + at(z, m, j) * at(y_tm1, m, j) + at(c_r, m, j) * acc[i][p][0] +
            at(c_z, m, j) * acc[i][p][1] + at(a_n, m, j) * (at(r, m, j) * acc[i][p][2]);
      store(y_t + m * H + j * kLanes, y, H - j * kLanes);
    });
  }
};

struct LinearStepBeforeGates : LinearStep {
  template <int R, int P>
  INLINE_MEMBER void run(int64_t row, int64_t block) const {
    V acc[R][P][2] = {};
    multiply<R, P, 2>(y_in + row, H, recurrent + block * block_size(H), block_size(H), gate, acc);
    unrolled<R, P>([&](int i, int p) INLINE_LAMBDA {
      int64_t m = row + i, j = block + p, to = m * width + j * kLanes;
      store(gated + to, at(c_r, m, j) * acc[i][p][0] + at(r, m, j) * at(y_in, m, j));
      store(partial + to, source_at(m, j) + at(z, m, j) * at(y_tm1, m, j) + at(c_z, m, j) * acc[i][p][1]);
    });
  }
};

struct LinearStepBeforeCandidate : LinearStep {
  template <int R, int P>
  INLINE_MEMBER void run(int64_t row, int64_t block) const {
    V acc[R][P][1] = {};
    multiply<R, P, 1>(gated_rows + row, H, recurrent + 2 * gate + block * block_size(H), block_size(H), 0, acc);
    unrolled<R, P>([&](int i, int p) INLINE_LAMBDA {
      int64_t m = row + i, j = block + p;
      V y = load(partial + m * width + j * kLanes) + at(a_n, m, j) * acc[i][p][0];
      store(y_t + m * H + j * kLanes, y, H - j * kLanes);
    });
  }
};

static int64_t linear_recurrence_scratch(const Sizes& sizes) {
  return sizes.rows * (4 * padded(sizes.features) + slots_stride(sizes.features)) + 64;
}

static void linear_forward(const LinearRecurrence& job, float* scratch) {
  const Sizes& sizes = job.sizes;
  const int64_t H = sizes.features, rows = sizes.rows, width = padded(H);
  Arena arena = {scratch};
  float* dropped = arena.alloc(rows * width);
  float* gated = arena.alloc(rows * width);
  float* partial = arena.alloc(rows * width);
  float* zero = arena.alloc(width);
  __builtin_memset(zero, 0, width * sizeof(float));
  const float *y_in[kChunk], *y_tm1[kChunk], *gated_rows[kChunk], *coefficients[5][kChunk];
  for (int64_t s = 0; s < sizes.steps; ++s) {
    const int64_t t = time_of(sizes, s);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t shared = (job.first_row + row) % job.period;
      const bool starts = s == 0 || flag(job.resets, t, shared, false);
      y_in[row] = y_tm1[row] = starts ? zero : job.ys.data + time_of(sizes, s - 1) * job.ys.step + row * H;
      gated_rows[row] = gated + row * width;
      if (job.dropout_mask) {
        elementwise_product(y_tm1[row], job.dropout_mask + row * H, dropped + row * width, H);
        y_in[row] = dropped + row * width;
      }
      for (int c = 0; c < 5; ++c) coefficients[c][row] = row_of(job.coefficients[c], t, shared, H);
    }
    const LinearStep step = {.y_in = y_in,
                             .y_tm1 = y_tm1,
                             .z = coefficients[0],
                             .r = coefficients[1],
                             .c_r = coefficients[2],
                             .c_z = coefficients[3],
                             .a_n = coefficients[4],
                             .source = job.source.data + t * job.source.step,
                             .recurrent = job.weights.recurrent.data,
                             .gated = gated,
                             .gated_rows = gated_rows,
                             .partial = partial,
                             .y_t = job.ys.data + t * job.ys.step,
                             .H = H,
                             .width = width,
                             .gate = packed_matrix(H, H)};
    if (sizes.reset_after) {
      for_each_tile<3>(LinearStepAfter{step}, rows, width / kLanes);
    } else {
      for_each_tile<2>(LinearStepBeforeGates{step}, rows, width / kLanes);
      for_each_tile<1>(LinearStepBeforeCandidate{step}, rows, width / kLanes);
    }
    for (int64_t row = 0; job.mask.data && row < rows; ++row) {
      if (flag(job.mask, t, (job.first_row + row) % job.period, true)) continue;
      for (int64_t i = 0; i < H; ++i) step.y_t[row * H + i] = step.source[row * H + i] + y_tm1[row][i];
    }
  }
}

static void linear_transposed(const LinearRecurrence& job, float* scratch) {
  const Sizes& sizes = job.sizes;
  const int64_t H = sizes.features, rows = sizes.rows, width = padded(H), stride = slots_stride(H);
  constexpr Slot slot_of[5] = {kZ, kR, kCR, kCZ, kAN};
  Arena arena = {scratch};
  float* slots = arena.alloc(rows * stride);
  float* carry = arena.alloc(rows * width);
  float* before = arena.alloc(rows * width);
  __builtin_memset(carry, 0, rows * width * sizeof(float));
  WorkShare alone;
  uint8_t mask[kChunk];
  for (int64_t s = sizes.steps; s-- > 0;) {
    const int64_t t = time_of(sizes, s);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t shared = (job.first_row + row) % job.period;
      for (int c = 0; c < 5; ++c) {
        const float* from = row_of(job.coefficients[c], t, shared, H);
        float* to = slots + row * stride + slot_of[c] * width;
        for (int64_t i = 0; i < H; i += kLanes)
          store(to + i, load(from + i, H - i));  // clears the padding, too, which may be a NaN
      }
      mask[row] = flag(job.mask, t, shared, true);
    }
    adjoint_step(sizes, job.source.data + t * job.source.step, job.ys.data + t * job.ys.step, slots, carry, before,
                 job.dropout_mask, job.weights.recurrent_transposed, job.mask.data ? mask : nullptr, alone);
    for (int64_t row = 0; row < rows; ++row) {
      const bool resets = flag(job.resets, t, (job.first_row + row) % job.period, false);
      if (resets) clear(carry + row * width, 1, width, width);
    }
  }
}

static void linear_recurrence(const LinearRecurrence& job, bool transposed, float* scratch) {
  transposed ? linear_transposed(job, scratch) : linear_forward(job, scratch);
}
