// One step of the transposed linearisation: from the cotangent of a state to that of the state before. The vjp of the
// states and the transposed linear recurrence both use it.
//
// The coefficients of the linearisation (gru_jax/linearisation.py) of one step and row are in five slots, side by side,
// each padded H wide. `adjoint_step` replaces four of them in place by the cotangents of the preactivations, in the
// order in which the products with Uᵀ and Wᵀ read them. λ is the cotangent of the state:
//
//     slot    0      1      2      3      4
//     from    r      c_r    c_z    a_n    z
//     to      d_q    d_r    d_z    d_n    z λ      reset after: d_q is the cotangent of h_in U_n + c_n
//     to      r      d_r    d_z    d_n    z λ      reset before
//
// Where a row is masked J is 1. There the coefficients are ignored, and the slots become 0, 0, 0, 0, λ: a selection, as
// a product with zero would make a NaN of an infinity.
enum Slot { kR = 0, kCR = 1, kCZ = 2, kAN = 3, kZ = 4, kSlots = 5 };

INLINE int64_t slots_stride(int64_t H) { return padded_stride(kSlots * padded(H)); }

struct AdjointStep {
  float* slots;               // (rows, ...)
  int64_t stride;             // the distance between two rows of `slots`
  const float* const* a;      // (rows) the left factor of the product: slot 0; slot 3 reset before
  const float* const* gates;  // (rows) the left factor of the second product, reset before: slot 1
  float* before;              // (rows, padded H): r ⊙ v, reset before
  float* carry;               // (rows, padded H): the cotangent of the state before
  const float* dropout_mask;  // (rows, H) or null
  const float* recurrent;     // Uᵀ, packed
  int64_t H, width;

  INLINE_MEMBER void finish(int64_t row, int64_t block, V through) const {
    int64_t column = block * kLanes;
    if (dropout_mask) through *= load(dropout_mask + row * H + column, H - column);
    store(carry + row * width + column, load(slots + row * stride + kZ * width + column) + through);
  }
};

struct AdjointStepAfter : AdjointStep {
  template <int R, int P>
  INLINE_MEMBER void run(int64_t row, int64_t block) const {
    V acc[R][P][1] = {};
    multiply<R, P, 1>(a + row, 3 * width, recurrent + block * block_size(3 * width), block_size(3 * width), 0, acc);
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA { finish(row + r, block + p, acc[r][p][0]); });
  }
};

// Reset before, first half: v = d_n U_nᵀ. The reset gate receives c_r ⊙ v, the state r ⊙ v.
struct AdjointStepBeforeCandidate : AdjointStep {
  template <int R, int P>
  INLINE_MEMBER void run(int64_t row, int64_t block) const {
    V acc[R][P][1] = {};
    multiply<R, P, 1>(a + row, width, recurrent + block * block_size(width), block_size(width), 0, acc);
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA {
      int64_t column = (block + p) * kLanes;
      float* slot = slots + (row + r) * stride + column;
      store(before + (row + r) * width + column, load(slot + kR * width) * acc[r][p][0]);
      store(slot + kCR * width, load(slot + kCR * width) * acc[r][p][0]);
    });
  }
};

// Reset before, second half: the products of d_r and d_z.
struct AdjointStepBeforeGates : AdjointStep {
  template <int R, int P>
  INLINE_MEMBER void run(int64_t row, int64_t block) const {
    V acc[R][P][1];
    unrolled<R, P>([&](int r, int p)
                       INLINE_LAMBDA { acc[r][p][0] = load(before + (row + r) * width + (block + p) * kLanes); });
    const float* gate_rows = recurrent + packed_matrix(width, H) + block * block_size(2 * width);
    multiply<R, P, 1>(gates + row, 2 * width, gate_rows, block_size(2 * width), 0, acc);
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA { finish(row + r, block + p, acc[r][p][0]); });
  }
};

// The slots of a masked row.
INLINE void adjoint_of_masked(float* slots, const float* source, const float* carry, int64_t H, int64_t width,
                              Span columns) {
  static_assert(kR == 0 && kCR == 1 && kCZ == 2 && kAN == 3);
  clear(slots, 4, width, columns);
  for (int64_t i = columns.first; i < columns.end; ++i) slots[kZ * width + i] = carry[i] + (i < H ? source[i] : 0.0f);
}

// The cotangent of the state before, of masked rows: λ.
INLINE void carry_of_masked(const AdjointStep& job, const uint8_t* mask, int64_t rows, Span columns) {
  if (!mask) return;
  for (int64_t row = 0; row < rows; ++row) {
    if (mask[row]) continue;
    const float* cotangent = job.slots + row * job.stride + kZ * job.width;
    copy(cotangent + columns.first, job.carry + row * job.width + columns.first, columns.count());
  }
}

// λ = source + carry, into `lambda` (rows, H) unless that is null; then, from λ, the slots and the new carry. False if
// the other thread does the rest alone.
static bool adjoint_step(const Sizes& sizes, const float* source, float* lambda, float* slots, float* carry,
                         float* before, const float* dropout_mask, const float* recurrent, const uint8_t* mask,
                         WorkShare& share) {
  const int64_t H = sizes.features, rows = sizes.rows, width = padded(H), stride = slots_stride(H),
                blocks = width / kLanes;
  const Span own = share_of(share, blocks);
  const float *a[kChunk], *gates[kChunk];
  for (int64_t row = 0; row < rows; ++row) {
    a[row] = slots + row * stride + (sizes.reset_after ? 0 : kAN * width);
    gates[row] = slots + row * stride + kCR * width;
    if (mask && !mask[row]) {
      adjoint_of_masked(slots + row * stride, source + row * H, carry + row * width, H, width, columns_of(own, width));
      if (lambda) {
        const Span columns = columns_of(own, H);
        copy(slots + row * stride + kZ * width + columns.first, lambda + row * H + columns.first, columns.count());
      }
      continue;
    }
    for (int64_t block = own.first; block < own.end; ++block) {
      const int64_t column = block * kLanes;
      float* slot = slots + row * stride + column;
      V cotangent = load(source + row * H + column, H - column) + load(carry + row * width + column);
      V d_n = load(slot + kAN * width) * cotangent;
      store(slot + kAN * width, d_n);
      store(slot + kCZ * width, load(slot + kCZ * width) * cotangent);
      store(slot + kZ * width, load(slot + kZ * width) * cotangent);
      if (sizes.reset_after) {
        store(slot + kR * width, load(slot + kR * width) * d_n);
        store(slot + kCR * width, load(slot + kCR * width) * cotangent);
      }
      if (lambda) store(lambda + row * H + column, cotangent, H - column);
    }
  }
  const AdjointStep job = {.slots = slots,
                           .stride = stride,
                           .a = a,
                           .gates = gates,
                           .before = before,
                           .carry = carry,
                           .dropout_mask = dropout_mask,
                           .recurrent = recurrent,
                           .H = H,
                           .width = width};
  if (!barrier(share)) return false;
  if (sizes.reset_after) {
    for_each_tile<1>(AdjointStepAfter{job}, rows, share_of(share, blocks));
    carry_of_masked(job, mask, rows, columns_of(share_of(share, blocks), width));
    return true;
  }
  for_each_tile<1>(AdjointStepBeforeCandidate{job}, rows, share_of(share, blocks));
  if (!barrier(share)) return false;
  for_each_tile<1>(AdjointStepBeforeGates{job}, rows, share_of(share, blocks));
  carry_of_masked(job, mask, rows, columns_of(share_of(share, blocks), width));
  return true;
}
