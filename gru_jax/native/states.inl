// The state recurrence h_t = step(h_tm1, x_t) of a block of rows.

INLINE V one_plus_exponential(V x) { return 1.0f + exponential(x); }

// z h + (1 − z) n = h + (1 − z)(n − h), with one division for both activations. Where z is 1, h stays exactly.
template <class Activation>
INLINE V interpolate(V h, V a_z, V a_n) {
  Ratio n = Activation::ratio(a_n);
  return h + (n.numerator - h * n.denominator) / (n.denominator * one_plus_exponential(a_z));
}

// One step of all rows of a block.
struct Step {
  const float* const* h_in;   // (rows) what enters the product with U
  const float* const* h_tm1;  // (rows)
  const uint8_t* mask;        // (rows) or null
  float* projected;           // (rows, 3, padded H): x W + b; reset before replaces that of z by the preactivation
  GateMatrices recurrent;     // U
  const float* bias;          // c, padded
  float* gated;               // (rows, padded H): r ⊙ h_in, reset before
  const float* const* gated_rows;
  float* h_t;                  // (rows, H)
  const MutableSeries* saved;  // preactivations, or null
  bool stream_saved;
  int64_t t;  // the step of `saved`
  int64_t H, padded_H;

  INLINE_MEMBER float* x(int64_t row, int64_t block, int g) const {
    return projected + (row * 3 + g) * padded_H + block * kLanes;
  }

  INLINE_MEMBER void save_preactivation(Preactivation which, int64_t row, int64_t block, V a) const {
    int64_t column = block * kLanes;
    float* to = saved[which].data + t * saved[which].step + row * H + column;
    if (kStreams && stream_saved) {
      stream(to, a);
    } else {
      store(to, a, H - column);
    }
  }

  template <class Activation>
  INLINE_MEMBER void finish(int64_t row, int64_t block, V a_z, V a_n) const {
    int64_t column = block * kLanes;
    V h = load(h_tm1[row] + column, H - column);
    V next = interpolate<Activation>(h, a_z, a_n);
    store(h_t + row * H + column, mask && !mask[row] ? h : next, H - column);
  }
};

template <bool kSave, class Activation>
struct StepAfter : Step {
  template <int R, int P>
  INLINE_MEMBER void run(int64_t row, int64_t block) const {
    V acc[R][P][3];
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA {
      acc[r][p][0] = load(x(row + r, block + p, 0));
      acc[r][p][1] = load(x(row + r, block + p, 1));
      acc[r][p][2] = load(bias + (block + p) * kLanes);
    });
    multiply<R, P, 3>(h_in + row, H, from_block(recurrent, block), acc);
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA {
      const V a_r = acc[r][p][0], q = acc[r][p][2];
      V a_n = load(x(row + r, block + p, 2)) + q / one_plus_exponential(-a_r);
      if constexpr (kSave) {
        save_preactivation(kPreR, row + r, block + p, a_r);
        save_preactivation(kPreZ, row + r, block + p, acc[r][p][1]);
        save_preactivation(kPreN, row + r, block + p, a_n);
        save_preactivation(kPreQ, row + r, block + p, q);
      }
      acc[r][p][2] = a_n;
    });
    unrolled<R, P>([&](int r, int p)
                       INLINE_LAMBDA { finish<Activation>(row + r, block + p, acc[r][p][1], acc[r][p][2]); });
  }
};

// Reset before, first half: the gates. Leaves r ⊙ h_in in `gated` and the preactivation of z in `projected`.
template <bool kSave>
struct StepBeforeGates : Step {
  template <int R, int P>
  INLINE_MEMBER void run(int64_t row, int64_t block) const {
    V acc[R][P][2];
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA {
      acc[r][p][0] = load(x(row + r, block + p, 0));
      acc[r][p][1] = load(x(row + r, block + p, 1));
    });
    multiply<R, P, 2>(h_in + row, H, from_block(recurrent, block), acc);
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA {
      int64_t column = (block + p) * kLanes;
      V h = load(h_in[row + r] + column, H - column);
      store(gated + (row + r) * padded_H + column, h / one_plus_exponential(-acc[r][p][0]));
      store(x(row + r, block + p, 1), acc[r][p][1]);
      if constexpr (kSave) {
        save_preactivation(kPreR, row + r, block + p, acc[r][p][0]);
        save_preactivation(kPreZ, row + r, block + p, acc[r][p][1]);
      }
    });
  }
};

// Reset before, second half: the candidate and the new state.
template <bool kSave, class Activation>
struct StepBeforeCandidate : Step {
  template <int R, int P>
  INLINE_MEMBER void run(int64_t row, int64_t block) const {
    V acc[R][P][1];
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA { acc[r][p][0] = load(x(row + r, block + p, 2)); });
    GateMatrices candidate = from_block(recurrent, block);
    candidate.data += 2 * recurrent.gate;
    multiply<R, P, 1>(gated_rows + row, H, candidate, acc);
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA {
      finish<Activation>(row + r, block + p, load(x(row + r, block + p, 1)), acc[r][p][0]);
      if constexpr (kSave) save_preactivation(kPreN, row + r, block + p, acc[r][p][0]);
    });
  }
};

// A thread's share of a step; false if the other thread does the rest alone. Whether to save is a template parameter:
// even a branch for it slows a single row down by a few per cent.
template <bool kSave, class Activation>
static bool step_rows(const Step& step, bool reset_after, int64_t rows, const TilePlan& plan, bool back,
                      WorkShare& share) {
  if (reset_after) {
    for_each_tile<3>(StepAfter<kSave, Activation>{step}, rows, plan, back);
  } else {
    for_each_tile<2>(StepBeforeGates<kSave>{step}, rows, plan, back);
    if (!barrier(share)) return false;
    for_each_tile<1>(StepBeforeCandidate<kSave, Activation>{step}, rows, share_of(share, block_count(step.H)));
  }
  if (kSave && step.stream_saved && share.members > 1) fence();  // behind the barrier the other thread may finish alone
  return barrier(share);
}

// Whether saved preactivations can bypass the caches: they must be whole aligned vectors.
static bool can_stream(const States& job) {
  uintptr_t offsets = job.in.sizes.features * sizeof(float);
  for (const MutableSeries& saved : job.saved) offsets |= (uintptr_t)saved.data;
  return kStreams && job.stream_saved && offsets % (kLanes * sizeof(float)) == 0;
}

static int64_t projected_size(const Sizes& sizes) { return kChunk * 3 * padded(sizes.features); }

// The projection x W + b of a chunk: (steps, rows, 3, padded H).
static void project_chunk(const States& job, int64_t i, float* projected, const WorkShare& share) {
  const Recurrence& in = job.in;
  const Sizes& sizes = in.sizes;
  const int64_t chunk = steps_per_chunk(sizes), first = i * chunk, count = min(chunk, sizes.steps - first);
  const Span own = share_of(share, count * sizes.rows);
  const float* a[kChunk];
  float* out[kChunk];
  const int64_t width = 3 * padded(sizes.features);
  for (int64_t m = own.first; m < own.end; ++m) {
    a[m] = row_of(in.xs, time_of(sizes, first + m / sizes.rows), m % sizes.rows, sizes.in_features);
    out[m] = projected + m * width;
  }
  const Gemm product = {
      .a = a, .K = sizes.in_features, .b = in.weights.kernel, .init = in.weights.bias, .out = out, .N = width};
  for_each_tile<1>(product, own, width / kLanes);
}

static int64_t states_carry_size(const Sizes& sizes) { return 3 * sizes.rows * padded(sizes.features); }

static bool recur_states(const States& job, int64_t i, float* projected, float* carry, WorkShare& share) {
  const Recurrence& in = job.in;
  const Sizes& sizes = in.sizes;
  const int64_t H = sizes.features, rows = sizes.rows, width = padded(H), chunk = steps_per_chunk(sizes);
  const Series hs = {.data = job.hs.data, .step = job.hs.step};
  float* gated = carry;
  float* dropped = carry + (1 + share.member) * rows * width;  // each thread applies dropout to all columns for itself
  const float *h_in[kChunk], *h_tm1[kChunk], *gated_rows[kChunk];
  for (int64_t row = 0; row < rows; ++row) gated_rows[row] = gated + row * width;
  const auto own_plan = [&]() INLINE_LAMBDA {
    const Span own = share_of(share, block_count(H));
    return sizes.reset_after ? tile_plan<3>(rows, own, H) : tile_plan<2>(rows, own, H);
  };
  TilePlan plan = own_plan();
  const bool streams = can_stream(job), saves = job.saved[kPreR].data;
  const auto run_step = in.candidate == Candidate::kTanh
                            ? (saves ? step_rows<true, Tanh> : step_rows<false, Tanh>)
                            : (saves ? step_rows<true, Sigmoid> : step_rows<false, Sigmoid>);
  bool goes_on = true;

  for (int64_t s = i * chunk; goes_on && s < min((i + 1) * chunk, sizes.steps); ++s) {
    const int64_t t = time_of(sizes, s);
    for (int64_t row = 0; row < rows; ++row) {
      h_in[row] = h_tm1[row] = state_before(in, hs, s, row);
      if (in.dropout_mask) {
        elementwise_product(h_tm1[row], in.dropout_mask + row * H, dropped + row * width, H);
        h_in[row] = dropped + row * width;
      }
    }
    const Step step = {.h_in = h_in,
                       .h_tm1 = h_tm1,
                       .mask = flags_at(in.mask, t),
                       .projected = projected + s % chunk * rows * 3 * width,
                       .recurrent = in.weights.recurrent,
                       .bias = in.weights.recurrent_bias,
                       .gated = gated,
                       .gated_rows = gated_rows,
                       .h_t = job.hs.data + t * job.hs.step,
                       .saved = saves ? job.saved : nullptr,
                       .stream_saved = streams,
                       .t = t,
                       .H = H,
                       .padded_H = width};
    const int64_t members = share.members;
    goes_on = run_step(step, sizes.reset_after, rows, plan, s % 2, share);
    if (share.members != members) plan = own_plan();
  }
  if (streams) fence();
  return goes_on;
}

static void noop_epilogue(const States&, int64_t, float*, const WorkShare&) {}
