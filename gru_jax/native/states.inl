// The state recurrence, h_t = step(h_tm1, x_t), for a part of the rows.

INLINE V plus_exponential(V x) { return 1.0f + exponential(x); }

// z h + (1 − z) n as h + (1 − z)(n − h), with one division for both activations. A gate that keeps everything keeps exactly.
template <class Activation>
INLINE V interpolated(V h, V a_z, V a_n) {
  Ratio n = Activation::ratio(a_n);
  return h + (n.numerator - h * n.denominator) / (n.denominator * plus_exponential(a_z));
}

// One step of several rows. Members with a row index begin at the part's first row.
struct Step {
  const float* const* h_in;   // (rows) what enters the product with U
  const float* const* h_tm1;  // (rows)
  const uint8_t* keep;        // (rows) or null
  float* projected;           // (rows, 3, padded H); z's becomes its preactivation, reset before
  Matrix recurrent;           // U
  const float* bias;          // c, padded
  float* reset;               // (rows, padded H): r ⊙ h_in, for reset before
  const float* const* reset_rows;
  float* h_t;                 // (rows, H)
  const MutableSeries* kept;  // or null
  bool streams;               // past the caches
  int64_t t;                  // the step of `kept`
  int64_t H, padded_H;

  INLINE_MEMBER float* x(int64_t row, int64_t block, int g) const {
    return projected + (row * 3 + g) * padded_H + block * kLanes;
  }

  INLINE_MEMBER void keep_preactivation(Kept which, int64_t row, int64_t block, V a) const {
    int64_t column = block * kLanes;
    float* to = kept[which].data + t * kept[which].step + row * H + column;
    if (kStreams && streams) {
      stream(to, a);
    } else {
      store(to, a, H - column);
    }
  }

  template <class Activation>
  INLINE_MEMBER void finish(int64_t row, int64_t block, V a_z, V a_n) const {
    int64_t column = block * kLanes;
    V h = load(h_tm1[row] + column, H - column);
    V next = interpolated<Activation>(h, a_z, a_n);
    store(h_t + row * H + column, keep && !keep[row] ? h : next, H - column);
  }
};

template <bool kKeep, class Activation>
struct ResetAfter : Step {
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
        V a_n = load(x(row + r, block + p, 2)) + q / plus_exponential(-a_r);
        if constexpr (kKeep) {
          keep_preactivation(kKeptR, row + r, block + p, a_r);
          keep_preactivation(kKeptZ, row + r, block + p, acc[r][p][1]);
          keep_preactivation(kKeptN, row + r, block + p, a_n);
          keep_preactivation(kKeptQ, row + r, block + p, q);
        }
        acc[r][p][2] = a_n;
    });
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA { finish<Activation>(row + r, block + p, acc[r][p][1], acc[r][p][2]); });
  }
};

// Reset before, first half: the gates. Leaves r ⊙ h_in in `reset` and the preactivation of z in `projected`.
template <bool kKeep>
struct ResetBeforeGates : Step {
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
        store(reset + (row + r) * padded_H + column, h / plus_exponential(-acc[r][p][0]));
        store(x(row + r, block + p, 1), acc[r][p][1]);
        if constexpr (kKeep) {
          keep_preactivation(kKeptR, row + r, block + p, acc[r][p][0]);
          keep_preactivation(kKeptZ, row + r, block + p, acc[r][p][1]);
        }
    });
  }
};

// Second half: the candidate and the new state.
template <bool kKeep, class Activation>
struct ResetBeforeCandidate : Step {
  template <int R, int P>
  INLINE_MEMBER void run(int64_t row, int64_t block) const {
    V acc[R][P][1];
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA { acc[r][p][0] = load(x(row + r, block + p, 2)); });
    Matrix candidate = from_block(recurrent, block);
    candidate.data += 2 * recurrent.gate;
    multiply<R, P, 1>(reset_rows + row, H, candidate, acc);
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA {
      finish<Activation>(row + r, block + p, load(x(row + r, block + p, 1)), acc[r][p][0]);
        if constexpr (kKeep) keep_preactivation(kKeptN, row + r, block + p, acc[r][p][0]);
    });
  }
};

// A thread's share of a step; false if the rest is left to the other. What is not kept costs nothing: even a branch for it slows
// a single row down by a few per cent.
template <bool kKeep, class Activation>
static bool take(const Step& step, bool reset_after, int64_t rows, const Order& order, bool back, Share& share) {
  if (reset_after) {
    cover<3>(ResetAfter<kKeep, Activation>{step}, rows, order, back);
  } else {
    cover<2>(ResetBeforeGates<kKeep>{step}, rows, order, back);
    if (!meet(share)) return false;
    cover<1>(ResetBeforeCandidate<kKeep, Activation>{step}, rows, share_of(share, blocks_of(step.H)));
  }
  if (kKeep && step.streams && share.members > 1) fence();  // the other may finish alone what it has been told of
  return meet(share);
}

// Whether preactivations can go past the caches: whole vectors, aligned.
static bool streams(const States& job) {
  uintptr_t offsets = job.in.sizes.features * sizeof(float);
  for (const MutableSeries& kept : job.kept) offsets |= (uintptr_t)kept.data;
  return kStreams && job.past_caches && offsets % (kLanes * sizeof(float)) == 0;
}

static int64_t projected_size(const Sizes& sizes) { return kChunk * 3 * padded(sizes.features); }

// The projection x W + b of a chunk: (steps, rows, 3, padded H).
static void project(const States& job, int64_t i, float* projected, const Share& share) {
  const Recurrence& in = job.in;
  const Sizes& sizes = in.sizes;
  const int64_t chunk = steps_per_chunk(sizes), first = i * chunk, count = least(chunk, sizes.steps - first);
  const Span own = share_of(share, count * sizes.rows);
  const float* a[kChunk];
  float* out[kChunk];
  const int64_t width = 3 * padded(sizes.features);
  for (int64_t m = own.first; m < own.end; ++m) {
    a[m] = row_of(in.xs, time_of(sizes, first + m / sizes.rows), m % sizes.rows, sizes.in_features);
    out[m] = projected + m * width;
  }
  const Plain product = {
      .a = a, .K = sizes.in_features, .b = in.weights.kernel, .init = in.weights.bias, .out = out, .N = width};
  cover<1>(product, own, width / kLanes);
}

static int64_t states_carry_size(const Sizes& sizes) { return 3 * sizes.rows * padded(sizes.features); }

static bool walk_states(const States& job, int64_t i, float* projected, float* carry, Share& share) {
  const Recurrence& in = job.in;
  const Sizes& sizes = in.sizes;
  const int64_t H = sizes.features, rows = sizes.rows, width = padded(H), chunk = steps_per_chunk(sizes);
  const Series hs = {job.hs.data, job.hs.step};
  float *reset = carry, *dropped = carry + (1 + share.member) * rows * width;  // each thread drops all columns for itself
  const float *h_in[kChunk], *h_tm1[kChunk], *reset_rows[kChunk];
  for (int64_t row = 0; row < rows; ++row) reset_rows[row] = reset + row * width;
  const auto own_order = [&]() INLINE_LAMBDA {
    const Span own = share_of(share, blocks_of(H));
    return sizes.reset_after ? order_of<3>(rows, own, H) : order_of<2>(rows, own, H);
  };
  Order order = own_order();
  const bool past_caches = streams(job), keeps = job.kept[kKeptR].data;
  const auto take_step = in.candidate == Candidate::kTanh ? (keeps ? take<true, Tanh> : take<false, Tanh>)
                                                          : (keeps ? take<true, Sigmoid> : take<false, Sigmoid>);
  bool mine = true;

  for (int64_t s = i * chunk; mine && s < least((i + 1) * chunk, sizes.steps); ++s) {
    const int64_t t = time_of(sizes, s);
    for (int64_t row = 0; row < rows; ++row) {
      h_in[row] = h_tm1[row] = state_before(in, hs, s, row);
      if (in.drop) {
        times(h_tm1[row], in.drop + row * H, dropped + row * width, H);
        h_in[row] = dropped + row * width;
      }
    }
    const Step step = {.h_in = h_in,
                       .h_tm1 = h_tm1,
                       .keep = flags_at(in.mask, t),
                       .projected = projected + s % chunk * rows * 3 * width,
                       .recurrent = in.weights.recurrent,
                       .bias = in.weights.recurrent_bias,
                       .reset = reset,
                       .reset_rows = reset_rows,
                       .h_t = job.hs.data + t * job.hs.step,
                       .kept = keeps ? job.kept : nullptr,
                       .streams = past_caches,
                       .t = t,
                       .H = H,
                       .padded_H = width};
    const int64_t members = share.members;
    mine = take_step(step, sizes.reset_after, rows, order, s % 2, share);
    if (share.members != members) order = own_order();
  }
  if (past_caches) fence();
  return mine;
}

static void leave(const States&, int64_t, float*, const Share&) {}
