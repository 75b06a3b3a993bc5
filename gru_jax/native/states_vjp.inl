// The vjp of the state recurrence: from the cotangent of the states to those of inputs, initial state and weights, for
// a block of rows.
//
// It goes back in time, by chunks of steps that fit in the second-level cache. A chunk first recomputes the gates from
// the inputs and the states, in parallel over time; then runs the transposed linearisation back; then contracts the
// cotangents of the gates with the left factors of their products. So a forward pass needs to save only the states, and
// only inputs and outputs go through memory. Where it has saved the preactivations, too, the gates come from them: that
// saves a quarter of the products for five times the memory (gru_jax/lowering.py chooses).

// A chunk. Its rows are those of all its steps and sequences. Each has the left factors of the products, x | h_in | r ⊙
// h_in (the last one reset before), and the slots of adjoint_step.inl.
struct Chunk {
  float *gemm_lhs, *slots;
  int64_t gemm_lhs_stride, slots_stride, D, H, width, first, steps;
};

// Where the operands of the rows of a chunk are that one thread linearises.
struct ChunkRows {
  explicit ChunkRows(Span own) : own(own) {}

  Span own;
  const float* inputs[kChunk];
  const float* states[kChunk];
  float* gated_states[kChunk];
  const float* h_tm1[kChunk];
  bool mask[kChunk];
};

struct Linearise {
  const Chunk* chunk;
  const ChunkRows* rows;
  const float *kernel, *recurrent, *bias, *recurrent_bias;
  int64_t D, H, width;

  INLINE_MEMBER const float* column_of(const float* packed, int64_t block, int64_t K) const {
    return packed + block * block_size(K);
  }

  INLINE_MEMBER V h_tm1(int64_t m, int64_t column) const { return load(rows->h_tm1[m] + column, H - column); }

  // The slots, reset after.
  template <class Activation>
  INLINE_MEMBER void reset_after(int64_t m, int64_t block, Gate r, V a_z, V a_n, V q) const {
    Gate z = gate_of(a_z);
    ValueSlope n = Activation::with_slope(a_n);
    V slope = z.rest * n.slope;
    store_slots(m, block, r.value, slope * q * r.slope, (h_tm1(m, block * kLanes) - n.value) * z.slope, slope, z.value);
  }

  // The slots without the factors of the candidate, and r ⊙ h_in, reset before.
  INLINE_MEMBER void reset_before_gates(int64_t m, int64_t block, V a_r, V a_z) const {
    int64_t column = block * kLanes;
    Gate r = gate_of(a_r), z = gate_of(a_z);
    V h_in = load(rows->states[m] + column, H - column);
    store(rows->gated_states[m] + column, r.value * h_in, H - column);
    store_slots(m, block, r.value, h_in * r.slope, z.slope, z.rest, z.value);
  }

  // The factors of the candidate.
  template <class Activation>
  INLINE_MEMBER void reset_before_candidate(int64_t m, int64_t block, V a_n) const {
    int64_t column = block * kLanes;
    float* slot = chunk->slots + m * chunk->slots_stride + column;
    ValueSlope n = Activation::with_slope(a_n);
    store(slot + kCZ * width, load(slot + kCZ * width) * (h_tm1(m, column) - n.value));
    store(slot + kAN * width, load(slot + kAN * width) * n.slope);
  }

  INLINE_MEMBER void store_slots(int64_t m, int64_t block, V r, V c_r, V c_z, V a_n, V z) const {
    float* slot = chunk->slots + m * chunk->slots_stride + block * kLanes;
    store(slot + kR * width, r);
    store(slot + kCR * width, c_r);
    store(slot + kCZ * width, c_z);
    store(slot + kAN * width, a_n);
    store(slot + kZ * width, z);
  }
};

template <class Activation>
struct LineariseAfter : Linearise {
  template <int R, int P>
  INLINE_MEMBER void run(int64_t m, int64_t block) const {
    V acc[R][P][3], x_n[R][P];
    unrolled<R, P, 3>([&](int r, int p, int g)
                          INLINE_LAMBDA { acc[r][p][g] = load(bias + g * width + (block + p) * kLanes); });
    multiply<R, P, 3>(rows->inputs + m, D, column_of(kernel, block, D), block_size(D), packed_matrix(D, H), acc);
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA {
      x_n[r][p] = acc[r][p][2];
      acc[r][p][2] = load(recurrent_bias + (block + p) * kLanes);
    });
    multiply<R, P, 3>(rows->states + m, H, column_of(recurrent, block, H), block_size(H), packed_matrix(H, H), acc);
    unrolled<R, P>([&](int i, int p) INLINE_LAMBDA {
      Gate r = gate_of(acc[i][p][0]);
      V q = acc[i][p][2];
      reset_after<Activation>(m + i, block + p, r, acc[i][p][1], x_n[i][p] + r.value * q, q);
    });
  }
};

// Reset before, first half: r, z and r ⊙ h_in.
struct LineariseBeforeGates : Linearise {
  template <int R, int P>
  INLINE_MEMBER void run(int64_t m, int64_t block) const {
    V acc[R][P][2];
    unrolled<R, P, 2>([&](int r, int p, int g)
                          INLINE_LAMBDA { acc[r][p][g] = load(bias + g * width + (block + p) * kLanes); });
    multiply<R, P, 2>(rows->inputs + m, D, column_of(kernel, block, D), block_size(D), packed_matrix(D, H), acc);
    multiply<R, P, 2>(rows->states + m, H, column_of(recurrent, block, H), block_size(H), packed_matrix(H, H), acc);
    unrolled<R, P>([&](int i, int p)
                       INLINE_LAMBDA { reset_before_gates(m + i, block + p, acc[i][p][0], acc[i][p][1]); });
  }
};

// Reset before, second half: n.
template <class Activation>
struct LineariseBeforeCandidate : Linearise {
  template <int R, int P>
  INLINE_MEMBER void run(int64_t m, int64_t block) const {
    V acc[R][P][1];
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA { acc[r][p][0] = load(bias + 2 * width + (block + p) * kLanes); });
    multiply<R, P, 1>(rows->inputs + m, D, column_of(kernel + 2 * packed_matrix(D, H), block, D), block_size(D), 0,
                      acc);
    multiply<R, P, 1>(rows->gated_states + m, H, column_of(recurrent + 2 * packed_matrix(H, H), block, H),
                      block_size(H), 0, acc);
    unrolled<R, P>([&](int i, int p)
                       INLINE_LAMBDA { reset_before_candidate<Activation>(m + i, block + p, acc[i][p][0]); });
  }
};

// The slots from the preactivations that the forward pass has saved.
template <class Activation>
static void linearise_saved(const StatesVjp& job, const Linearise& to) {
  const Sizes& sizes = job.in.sizes;
  for (int64_t m = to.rows->own.first; m < to.rows->own.end; ++m) {
    const int64_t t = time_of(sizes, to.chunk->first + m / sizes.rows), row = m % sizes.rows;
    if (!to.rows->mask[m]) continue;
    for (int64_t block = 0; block < to.width / kLanes; ++block) {
      const auto saved = [&](Preactivation which) INLINE_LAMBDA {
        return load(row_of(job.saved[which], t, row, to.H) + block * kLanes, to.H - block * kLanes);
      };
      if (sizes.reset_after) {
        to.reset_after<Activation>(m, block, gate_of(saved(kPreR)), saved(kPreZ), saved(kPreN), saved(kPreQ));
      } else {
        to.reset_before_gates(m, block, saved(kPreR), saved(kPreZ));
        to.reset_before_candidate<Activation>(m, block, saved(kPreN));
      }
    }
  }
}

static int64_t gemm_lhs_stride(const Sizes& sizes) {
  return padded_stride(sizes.in_features + (sizes.reset_after ? 1 : 2) * sizes.features);
}

// Gathers the left factors of the products. Those of a masked row become zero: they may be NaNs.
static void gather(const StatesVjp& job, const Chunk& chunk, ChunkRows& rows) {
  const Recurrence& in = job.in;
  const int64_t D = chunk.D, H = chunk.H;
  for (int64_t m = rows.own.first; m < rows.own.end; ++m) {
    const int64_t s = chunk.first + m / in.sizes.rows, t = time_of(in.sizes, s), row = m % in.sizes.rows;
    float* gemm_lhs = chunk.gemm_lhs + m * chunk.gemm_lhs_stride;
    rows.inputs[m] = gemm_lhs;
    rows.states[m] = gemm_lhs + D;
    rows.gated_states[m] = gemm_lhs + D + H;
    rows.h_tm1[m] = state_before(in, job.hs, s, row);
    rows.mask[m] = flag(in.mask, t, row, true);
    if (!rows.mask[m]) {
      clear(gemm_lhs, 1, chunk.gemm_lhs_stride, chunk.gemm_lhs_stride);
      continue;
    }
    copy(row_of(in.xs, t, row, D), gemm_lhs, D);
    if (in.dropout_mask) {
      elementwise_product(rows.h_tm1[m], in.dropout_mask + row * H, gemm_lhs + D, H);
    } else {
      copy(rows.h_tm1[m], gemm_lhs + D, H);
    }
  }
}

template <class Activation>
static void linearise(const StatesVjp& job, const Chunk& chunk, const ChunkRows& rows) {
  const Recurrence& in = job.in;
  const PackedWeights& w = in.weights;
  const Linearise to = {.chunk = &chunk,
                        .rows = &rows,
                        .kernel = w.kernel.data,
                        .recurrent = w.recurrent.data,
                        .bias = w.bias,
                        .recurrent_bias = w.recurrent_bias,
                        .D = chunk.D,
                        .H = chunk.H,
                        .width = chunk.width};
  const int64_t blocks = chunk.width / kLanes;
  if (job.saved[kPreR].data) {
    linearise_saved<Activation>(job, to);
  } else if (in.sizes.reset_after) {
    for_each_tile<3>(LineariseAfter<Activation>{to}, rows.own, blocks);
  } else {
    for_each_tile<2>(LineariseBeforeGates{to}, rows.own, blocks);
    for_each_tile<1>(LineariseBeforeCandidate<Activation>{to}, rows.own, blocks);
  }
  // An infinity in a product makes the padding a NaN, which the next product would read.
  for (int64_t m = rows.own.first; chunk.H < chunk.width && m < rows.own.end; ++m) {
    clear(chunk.slots + m * chunk.slots_stride, kSlots, chunk.width, {chunk.H, chunk.width});
  }
}

static int64_t weight_gradients_size(int64_t D, int64_t H) { return (D + H + 2) * 3 * padded(H); }

// Adds a chunk to the sums over steps and rows: dW, dU, db, dc.
static void accumulate(const Chunk& chunk, int64_t rows, Span blocks, bool reset_after, float* sum) {
  const int64_t D = chunk.D, H = chunk.H, width = chunk.width, row = 3 * width;
  const int64_t lda = chunk.gemm_lhs_stride, ldb = chunk.slots_stride;
  for (int64_t block = blocks.first; block < blocks.end; ++block) {
    const int64_t column = block * kLanes;
    const float* slot = chunk.slots + column;
    const float *d_q = slot, *d_r = slot + kCR * width, *d_z = slot + kCZ * width, *d_n = slot + kAN * width;
    float* to = sum + column;
    accumulate_outer<3>(chunk.gemm_lhs, lda, {d_r, d_z, d_n}, ldb, rows, D, to, row, width);
    to += D * row;
    if (reset_after) {
      accumulate_outer<3>(chunk.gemm_lhs + D, lda, {d_r, d_z, d_q}, ldb, rows, H, to, row, width);
    } else {
      accumulate_outer<2>(chunk.gemm_lhs + D, lda, {d_r, d_z}, ldb, rows, H, to, row, width);
      accumulate_outer<1>(chunk.gemm_lhs + D + H, lda, {d_n}, ldb, rows, H, to + 2 * width, row, width);
    }
    to += H * row;
    V b_r = load(to), b_z = load(to + width), b_n = load(to + 2 * width), c_n = load(to + row);
    for (int64_t m = 0; m < rows; ++m) {
      b_r += load(d_r + m * ldb);
      b_z += load(d_z + m * ldb);
      b_n += load(d_n + m * ldb);
      c_n += load(d_q + m * ldb);
    }
    store(to, b_r);
    store(to + width, b_z);
    store(to + 2 * width, b_n);
    store(to + row, c_n);
  }
}

// Cotangents of x: [d_r | d_z | d_n] Wᵀ.
static void input_cotangents(const StatesVjp& job, const Chunk& chunk, Span rows) {
  const Sizes& sizes = job.in.sizes;
  const float* a[kChunk];
  float* out[kChunk];
  for (int64_t m = rows.first; m < rows.end; ++m) {
    const int64_t t = time_of(sizes, chunk.first + m / sizes.rows);
    a[m] = chunk.slots + m * chunk.slots_stride + kCR * chunk.width;
    out[m] = job.d_xs.data + t * job.d_xs.step + m % sizes.rows * chunk.D;
  }
  const Gemm product = {.a = a,
                        .K = 3 * chunk.width,
                        .b = packed_gates(job.in.weights.kernel_transposed, 3 * chunk.width, chunk.D),
                        .init = nullptr,
                        .out = out,
                        .N = chunk.D};
  for_each_tile<1>(product, rows, block_count(chunk.D));
}

static int64_t vjp_chunk_size(const Sizes& sizes) {
  return kChunk * (gemm_lhs_stride(sizes) + slots_stride(sizes.features));
}

static int64_t vjp_carry_size(const Sizes& sizes) { return 2 * sizes.rows * padded(sizes.features); }

// The steps of the i-th chunk from the end, and where it is in memory.
static Chunk chunk_at(const Sizes& sizes, int64_t i, float* memory) {
  const int64_t steps = steps_per_chunk(sizes), end = sizes.steps - i * steps, first = end > steps ? end - steps : 0;
  const int64_t stride = gemm_lhs_stride(sizes);
  return {.gemm_lhs = memory,
          .slots = memory + kChunk * stride,
          .gemm_lhs_stride = stride,
          .slots_stride = slots_stride(sizes.features),
          .D = sizes.in_features,
          .H = sizes.features,
          .width = padded(sizes.features),
          .first = first,
          .steps = end - first};
}

static void linearise_chunk(const StatesVjp& job, int64_t i, float* memory, const WorkShare& share) {
  const Chunk chunk = chunk_at(job.in.sizes, i, memory);
  ChunkRows rows(share_of(share, chunk.steps * job.in.sizes.rows));
  gather(job, chunk, rows);
  (job.in.candidate == Candidate::kTanh ? linearise<Tanh> : linearise<Sigmoid>)(job, chunk, rows);
}

// The carry of rows whose step s started from h_0 or from the reset state is added to the cotangent of that, and
// cleared; the padding, too, from which the next product would read a NaN.
static void flush_at_starts(const StatesVjp& job, int64_t s, float* carry, Span columns) {
  const Sizes& sizes = job.in.sizes;
  const int64_t H = sizes.features, width = padded(H);
  for (int64_t row = 0; row < sizes.rows; ++row) {
    const bool reset = flag(job.in.resets, time_of(sizes, s), row, false);
    if (s > 0 && !reset) continue;
    float* to = reset ? job.d_reset_state : job.d_h_0;
    for (int64_t i = columns.first; to && i < min(columns.end, H); ++i) to[row * H + i] += carry[row * width + i];
    clear(carry + row * width, 1, width, columns);
  }
}

static bool recur_adjoint(const StatesVjp& job, int64_t i, float* memory, float* carry, WorkShare& share) {
  const Recurrence& in = job.in;
  const Sizes& sizes = in.sizes;
  const Chunk chunk = chunk_at(sizes, i, memory);
  const int64_t rows = sizes.rows, size = rows * chunk.width, blocks = chunk.width / kLanes;
  if (i == 0) {
    clear(carry, rows, chunk.width, columns_of(share_of(share, blocks), chunk.width));
    const Span own = columns_of(share_of(share, blocks), chunk.H);
    clear(job.d_h_0, rows, chunk.H, own);
    if (job.d_reset_state) clear(job.d_reset_state, rows, chunk.H, own);
  }
  for (int64_t s = chunk.first + chunk.steps; s-- > chunk.first;) {
    const float* ct = job.ct.data + time_of(sizes, s) * job.ct.step;
    float* slots = chunk.slots + (s - chunk.first) * rows * chunk.slots_stride;
    const uint8_t* mask = flags_at(in.mask, time_of(sizes, s));
    const bool goes_on = adjoint_step(sizes, ct, nullptr, slots, carry, carry + size, in.dropout_mask,
                                      in.weights.recurrent_transposed, mask, share);
    if (!goes_on) return false;
    if (s == 0 || in.resets.data) flush_at_starts(job, s, carry, columns_of(share_of(share, blocks), chunk.width));
  }
  return true;
}

// The gradients of the weights and the cotangents of the inputs, from the cotangents of the gates.
static void contract_chunk(const StatesVjp& job, int64_t i, float* memory, const WorkShare& share) {
  const Chunk chunk = chunk_at(job.in.sizes, i, memory);
  const int64_t rows = chunk.steps * job.in.sizes.rows;
  if (job.d_weights) {
    const Span blocks = share_of(share, chunk.width / kLanes);
    if (i == 0) clear(job.d_weights, 3 * (chunk.D + chunk.H + 2), chunk.width, columns_of(blocks, chunk.width));
    accumulate(chunk, rows, blocks, job.in.sizes.reset_after, job.d_weights);
  }
  if (job.d_xs.data) input_cotangents(job, chunk, share_of(share, rows));
}
