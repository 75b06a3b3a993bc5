// The gradient of the state recurrence: from the cotangent of the states to those of inputs, initial state and weights, for
// a part of the rows.
//
// It walks back over chunks of steps that fit in the second-level cache. In each it forms the gates again, in parallel over
// time, from the inputs and the states; runs the transposed linearisation back; then multiplies its results with what entered
// the gates. So nothing need be kept from the forward pass but the states, and nothing goes through memory but inputs and
// outputs. Where the preactivations were kept, too, the gates come from them: that saves a quarter of the products for five
// times the memory (gru_jax/lowering.py chooses).

// A chunk: for each of its rows, over steps and sequences, what entered the products, x | h_in | (reset before) r ⊙ h_in, and
// the slots of pull.h.
struct Chunk {
  float *entered, *slots;
  int64_t entered_stride, slots_stride, D, H, width, first, steps;
};

// Where the operands of each row of a chunk are, of those that a thread linearises.
struct Rows {
  explicit Rows(Span own) : own(own) {}

  Span own;
  const float* inputs[kChunk];
  const float* states[kChunk];
  float* resets[kChunk];
  const float* h_tm1[kChunk];
  bool keep[kChunk];
};

struct Linearise {
  const Chunk* chunk;
  const Rows* rows;
  const float *kernel, *recurrent, *bias, *recurrent_bias;
  int64_t D, H, width;

  INLINE_MEMBER const float* column_of(const float* packed, int64_t block, int64_t K) const {
    return packed + block * block_size(K);
  }

  INLINE_MEMBER V h_tm1(int64_t m, int64_t column) const { return load(rows->h_tm1[m] + column, H - column); }

  // The slots of a cell that resets after the product.
  template <class Activation>
  INLINE_MEMBER void after(int64_t m, int64_t block, Gate r, V a_z, V a_n, V q) const {
    Gate z = gate_of(a_z);
    ValueSlope n = Activation::with_slope(a_n);
    V slope = z.rest * n.slope;
    keep_slots(m, block, r.value, slope * q * r.slope, (h_tm1(m, block * kLanes) - n.value) * z.slope, slope, z.value);
  }

  // Those of one that resets before it: what the gates say, and r ⊙ h_in; then what the candidate adds.
  INLINE_MEMBER void before(int64_t m, int64_t block, V a_r, V a_z) const {
    int64_t column = block * kLanes;
    Gate r = gate_of(a_r), z = gate_of(a_z);
    V h_in = load(rows->states[m] + column, H - column);
    store(rows->resets[m] + column, r.value * h_in, H - column);
    keep_slots(m, block, r.value, h_in * r.slope, z.slope, z.rest, z.value);
  }

  template <class Activation>
  INLINE_MEMBER void complete(int64_t m, int64_t block, V a_n) const {
    int64_t column = block * kLanes;
    float* slot = chunk->slots + m * chunk->slots_stride + column;
    ValueSlope n = Activation::with_slope(a_n);
    store(slot + kCZ * width, load(slot + kCZ * width) * (h_tm1(m, column) - n.value));
    store(slot + kAN * width, load(slot + kAN * width) * n.slope);
  }

  INLINE_MEMBER void keep_slots(int64_t m, int64_t block, V r, V c_r, V c_z, V a_n, V z) const {
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
    unrolled<R, P, 3>([&](int r, int p, int g) INLINE_LAMBDA { acc[r][p][g] = load(bias + g * width + (block + p) * kLanes); });
    multiply<R, P, 3>(rows->inputs + m, D, column_of(kernel, block, D), block_size(D), packed_matrix(D, H), acc);
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA {
      x_n[r][p] = acc[r][p][2];
        acc[r][p][2] = load(recurrent_bias + (block + p) * kLanes);
    });
    multiply<R, P, 3>(rows->states + m, H, column_of(recurrent, block, H), block_size(H), packed_matrix(H, H), acc);
    unrolled<R, P>([&](int i, int p) INLINE_LAMBDA {
      Gate r = gate_of(acc[i][p][0]);
        V q = acc[i][p][2];
        after<Activation>(m + i, block + p, r, acc[i][p][1], x_n[i][p] + r.value * q, q);
    });
  }
};

// Reset before, first half: r and z, and r ⊙ h_in, which enters the candidate.
struct LineariseBeforeGates : Linearise {
  template <int R, int P>
  INLINE_MEMBER void run(int64_t m, int64_t block) const {
    V acc[R][P][2];
    unrolled<R, P, 2>([&](int r, int p, int g) INLINE_LAMBDA { acc[r][p][g] = load(bias + g * width + (block + p) * kLanes); });
    multiply<R, P, 2>(rows->inputs + m, D, column_of(kernel, block, D), block_size(D), packed_matrix(D, H), acc);
    multiply<R, P, 2>(rows->states + m, H, column_of(recurrent, block, H), block_size(H), packed_matrix(H, H), acc);
    unrolled<R, P>([&](int i, int p) INLINE_LAMBDA { before(m + i, block + p, acc[i][p][0], acc[i][p][1]); });
  }
};

// Second half: n, which completes c_z and a_n.
template <class Activation>
struct LineariseBeforeCandidate : Linearise {
  template <int R, int P>
  INLINE_MEMBER void run(int64_t m, int64_t block) const {
    V acc[R][P][1];
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA { acc[r][p][0] = load(bias + 2 * width + (block + p) * kLanes); });
    multiply<R, P, 1>(rows->inputs + m, D, column_of(kernel + 2 * packed_matrix(D, H), block, D), block_size(D), 0, acc);
    multiply<R, P, 1>(rows->resets + m, H, column_of(recurrent + 2 * packed_matrix(H, H), block, H), block_size(H), 0, acc);
    unrolled<R, P>([&](int i, int p) INLINE_LAMBDA { complete<Activation>(m + i, block + p, acc[i][p][0]); });
  }
};

// The slots from the preactivations that the forward pass has kept.
template <class Activation>
static void linearise_kept(const Gradient& job, const Linearise& to) {
  const Sizes& sizes = job.in.sizes;
  for (int64_t m = to.rows->own.first; m < to.rows->own.end; ++m) {
    const int64_t t = time_of(sizes, to.chunk->first + m / sizes.rows), row = m % sizes.rows;
    if (!to.rows->keep[m]) continue;
    for (int64_t block = 0; block < to.width / kLanes; ++block) {
      const auto kept = [&](Kept which) INLINE_LAMBDA {
        return load(row_of(job.kept[which], t, row, to.H) + block * kLanes, to.H - block * kLanes);
      };
      if (sizes.reset_after) {
        to.after<Activation>(m, block, gate_of(kept(kKeptR)), kept(kKeptZ), kept(kKeptN), kept(kKeptQ));
      } else {
        to.before(m, block, kept(kKeptR), kept(kKeptZ));
        to.complete<Activation>(m, block, kept(kKeptN));
      }
    }
  }
}

static int64_t entered_stride(const Sizes& sizes) {
  return spread(sizes.in_features + (sizes.reset_after ? 1 : 2) * sizes.features);
}

// Gathers what entered the products: nothing where a state was held, which may be a NaN.
static void gather(const Gradient& job, const Chunk& chunk, Rows& rows) {
  const Recurrence& in = job.in;
  const int64_t D = chunk.D, H = chunk.H;
  for (int64_t m = rows.own.first; m < rows.own.end; ++m) {
    const int64_t s = chunk.first + m / in.sizes.rows, t = time_of(in.sizes, s), row = m % in.sizes.rows;
    float* entered = chunk.entered + m * chunk.entered_stride;
    rows.inputs[m] = entered;
    rows.states[m] = entered + D;
    rows.resets[m] = entered + D + H;
    rows.h_tm1[m] = state_before(in, job.hs, s, row);
    rows.keep[m] = flag(in.mask, t, row, true);
    if (!rows.keep[m]) {
      clear(entered, 1, chunk.entered_stride, chunk.entered_stride);
      continue;
    }
    copy(row_of(in.xs, t, row, D), entered, D);
    if (in.drop) {
      times(rows.h_tm1[m], in.drop + row * H, entered + D, H);
    } else {
      copy(rows.h_tm1[m], entered + D, H);
    }
  }
}

template <class Activation>
static void linearise(const Gradient& pass, const Chunk& chunk, const Rows& rows) {
  const Recurrence& in = pass.in;
  const Packed& w = in.weights;
  const Linearise job = {.chunk = &chunk,
                         .rows = &rows,
                         .kernel = w.kernel.data,
                         .recurrent = w.recurrent.data,
                         .bias = w.bias,
                         .recurrent_bias = w.recurrent_bias,
                         .D = chunk.D,
                         .H = chunk.H,
                         .width = chunk.width};
  const int64_t blocks = chunk.width / kLanes;
  if (pass.kept[kKeptR].data) {
    linearise_kept<Activation>(pass, job);
  } else if (in.sizes.reset_after) {
    cover<3>(LineariseAfter<Activation>{job}, rows.own, blocks);
  } else {
    cover<2>(LineariseBeforeGates{job}, rows.own, blocks);
    cover<1>(LineariseBeforeCandidate<Activation>{job}, rows.own, blocks);
  }
  // An infinity that entered a product has made a NaN of the padding, which enters the next one.
  for (int64_t m = rows.own.first; chunk.H < chunk.width && m < rows.own.end; ++m) {
    clear(chunk.slots + m * chunk.slots_stride, kSlots, chunk.width, {chunk.H, chunk.width});
  }
}

static int64_t gradient_size(int64_t D, int64_t H) { return (D + H + 2) * 3 * padded(H); }

// Adds a chunk's share to the sums over steps and rows: dW, dU, db, dc.
static void accumulate(const Chunk& chunk, int64_t rows, Span blocks, bool reset_after, float* sum) {
  const int64_t D = chunk.D, H = chunk.H, width = chunk.width, row = 3 * width;
  const int64_t lda = chunk.entered_stride, ldb = chunk.slots_stride;
  for (int64_t block = blocks.first; block < blocks.end; ++block) {
    const int64_t column = block * kLanes;
    const float* slot = chunk.slots + column;
    const float *d_q = slot, *d_r = slot + kCR * width, *d_z = slot + kCZ * width, *d_n = slot + kAN * width;
    float* to = sum + column;
    outer<3>(chunk.entered, lda, {d_r, d_z, d_n}, ldb, rows, D, to, row, width);
    to += D * row;
    if (reset_after) {
      outer<3>(chunk.entered + D, lda, {d_r, d_z, d_q}, ldb, rows, H, to, row, width);
    } else {
      outer<2>(chunk.entered + D, lda, {d_r, d_z}, ldb, rows, H, to, row, width);
      outer<1>(chunk.entered + D + H, lda, {d_n}, ldb, rows, H, to + 2 * width, row, width);
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
static void input_cotangents(const Gradient& job, const Chunk& chunk, Span rows) {
  const Sizes& sizes = job.in.sizes;
  const float* a[kChunk];
  float* out[kChunk];
  for (int64_t m = rows.first; m < rows.end; ++m) {
    const int64_t t = time_of(sizes, chunk.first + m / sizes.rows);
    a[m] = chunk.slots + m * chunk.slots_stride + kCR * chunk.width;
    out[m] = job.d_xs.data + t * job.d_xs.step + m % sizes.rows * chunk.D;
  }
  const Plain product = {.a = a,
                         .K = 3 * chunk.width,
                         .b = packed_gates(job.in.weights.kernel_transposed, 3 * chunk.width, chunk.D),
                         .init = nullptr,
                         .out = out,
                         .N = chunk.D};
  cover<1>(product, rows, blocks_of(chunk.D));
}

static int64_t chunk_size(const Sizes& sizes) {
  return kChunk * (entered_stride(sizes) + slots_stride(sizes.features));
}

static int64_t gradient_carry_size(const Sizes& sizes) { return 2 * sizes.rows * padded(sizes.features); }

// The steps of the i-th chunk from the end, and where it is in memory.
static Chunk chunk_at(const Sizes& sizes, int64_t i, float* memory) {
  const int64_t steps = steps_per_chunk(sizes), end = sizes.steps - i * steps, first = end > steps ? end - steps : 0;
  const int64_t stride = entered_stride(sizes);
  return {.entered = memory,
          .slots = memory + kChunk * stride,
          .entered_stride = stride,
          .slots_stride = slots_stride(sizes.features),
          .D = sizes.in_features,
          .H = sizes.features,
          .width = padded(sizes.features),
          .first = first,
          .steps = end - first};
}

static void linearise_chunk(const Gradient& job, int64_t i, float* memory, const Share& share) {
  const Chunk chunk = chunk_at(job.in.sizes, i, memory);
  Rows rows(share_of(share, chunk.steps * job.in.sizes.rows));
  gather(job, chunk, rows);
  (job.in.candidate == Candidate::kTanh ? linearise<Tanh> : linearise<Sigmoid>)(job, chunk, rows);
}

// The carry of rows that a step started from h_0 or from the reset state goes there, and ends: in the padding, too, where a NaN
// would come back by the next product.
static void end_at_start(const Gradient& job, int64_t s, float* carry, Span columns) {
  const Sizes& sizes = job.in.sizes;
  const int64_t H = sizes.features, width = padded(H);
  for (int64_t row = 0; row < sizes.rows; ++row) {
    const bool reset = flag(job.in.resets, time_of(sizes, s), row, false);
    if (s > 0 && !reset) continue;
    float* to = reset ? job.d_reset_state : job.d_h_0;
    for (int64_t i = columns.first; to && i < least(columns.end, H); ++i) to[row * H + i] += carry[row * width + i];
    clear(carry + row * width, 1, width, columns);
  }
}

static bool walk_back(const Gradient& job, int64_t i, float* memory, float* carry, Share& share) {
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
    const uint8_t* keep = flags_at(in.mask, time_of(sizes, s));
    if (!pull(sizes, ct, nullptr, slots, carry, carry + size, in.drop, in.weights.recurrent_transposed, keep, share)) return false;
    if (s == 0 || in.resets.data) end_at_start(job, s, carry, columns_of(share_of(share, blocks), chunk.width));
  }
  return true;
}

// What the cotangents of the gates amount to for the weights and the inputs.
static void contract(const Gradient& job, int64_t i, float* memory, const Share& share) {
  const Chunk chunk = chunk_at(job.in.sizes, i, memory);
  const int64_t rows = chunk.steps * job.in.sizes.rows;
  if (job.d_weights) {
    const Span blocks = share_of(share, chunk.width / kLanes);
    if (i == 0) clear(job.d_weights, 3 * (chunk.D + chunk.H + 2), chunk.width, columns_of(blocks, chunk.width));
    accumulate(chunk, rows, blocks, job.in.sizes.reset_after, job.d_weights);
  }
  if (job.d_xs.data) input_cotangents(job, chunk, share_of(share, rows));
}
