// Packs one set of weights from JAX's layout, kernel (D, 3H) and recurrent kernel (H, 3H) with gates r, z, n, into that
// of the products; sums the gradients of weights back into JAX's layout.

// Whether products read the matrices where JAX has them. The last vector of a gate must not reach into the next gate.
static bool in_place(const Weights& weights) {
  return weights.few_uses && !weights.transposed && weights.features % kLanes == 0;
}

static int64_t packed_size(const Weights& weights) {
  const int64_t D = weights.in_features, H = weights.features, width = padded(H);
  const int64_t forward = (in_place(weights) ? 0 : 3 * (packed_matrix(D, H) + packed_matrix(H, H))) + 4 * width;
  const int64_t backward = packed_matrix(3 * width, D) + packed_matrix(width, H) + packed_matrix(2 * width, H);
  return forward + (weights.transposed ? backward : 0) + 6 * 16;
}

static void pack_bias(const float* bias, int64_t H, float* to, const WorkShare& share) {
  const Span own = columns_of(share_of(share, block_count(H)), H);
  for (int64_t i = own.first; i < own.end; i += kLanes) store(to + i, bias ? load(bias + i, H - i) : V{});
}

// Uᵀ in the order of the slots of adjoint_step.inl. Reset after: one matrix of rows n, r, z. Reset before: a matrix of
// rows n, then one of rows r, z.
static void pack_recurrent_transposed(const Weights& weights, float* to, const WorkShare& share) {
  const int64_t H = weights.features, width = padded(H);
  const float *r = weights.recurrent, *z = r + H, *n = z + H;
  if (weights.reset_after) {
    pack_transposed(n, 3 * H, H, H, to, 3 * width, 0, share);
    pack_transposed(r, 3 * H, H, H, to, 3 * width, width, share);
    pack_transposed(z, 3 * H, H, H, to, 3 * width, 2 * width, share);
  } else {
    pack_transposed(n, 3 * H, H, H, to, width, 0, share);
    pack_transposed(r, 3 * H, H, H, to + packed_matrix(width, H), 2 * width, 0, share);
    pack_transposed(z, 3 * H, H, H, to + packed_matrix(width, H), 2 * width, width, share);
  }
}

// Packs a thread's share of the weights. Returns where all of them are.
static PackedWeights pack_weights(const Weights& weights, float* memory, const WorkShare& share) {
  const int64_t D = weights.in_features, H = weights.features, width = padded(H);
  Arena arena = {memory};
  float* bias = arena.alloc(3 * width);
  float* recurrent_bias = arena.alloc(width);
  for (int64_t gate = 0; gate < 3; ++gate) {
    pack_bias(weights.bias ? weights.bias + gate * H : nullptr, H, bias + gate * width, share);
  }
  pack_bias(weights.recurrent_bias, H, recurrent_bias, share);
  if (in_place(weights)) {
    return {.kernel = gates_in_place(weights.kernel, H),
            .recurrent = gates_in_place(weights.recurrent, H),
            .bias = bias,
            .recurrent_bias = recurrent_bias};
  }
  float* kernel = arena.alloc(3 * packed_matrix(D, H));
  float* recurrent = arena.alloc(3 * packed_matrix(H, H));
  PackedWeights packed = {.kernel = packed_gates(kernel, D, H),
                          .recurrent = packed_gates(recurrent, H, H),
                          .bias = bias,
                          .recurrent_bias = recurrent_bias};
  for (int64_t gate = 0; gate < 3; ++gate) {
    if (weights.kernel) pack(weights.kernel + gate * H, 3 * H, D, H, kernel + gate * packed_matrix(D, H), share);
    pack(weights.recurrent + gate * H, 3 * H, H, H, recurrent + gate * packed_matrix(H, H), share);
  }
  if (!weights.transposed) return packed;
  float* recurrent_transposed = arena.alloc(packed_matrix(width, H) + packed_matrix(2 * width, H));
  pack_recurrent_transposed(weights, recurrent_transposed, share);
  packed.recurrent_transposed = recurrent_transposed;
  if (weights.kernel) {
    float* kernel_transposed = arena.alloc(packed_matrix(3 * width, D));
    for (int64_t gate = 0; gate < 3; ++gate) {
      pack_transposed(weights.kernel + gate * H, 3 * H, H, D, kernel_transposed, 3 * width, gate * width, share);
    }
    packed.kernel_transposed = kernel_transposed;
  }
  return packed;
}

// Sums the gradients of `count` blocks of rows, in their order: rows [first, last) of the D + H + 2 of
// `StatesVjp::d_weights`.
static void reduce_weight_gradients(const float* partial, int64_t count, int64_t D, int64_t H, int64_t first,
                                    int64_t last, const WeightGradients& to) {
  const int64_t width = padded(H), row = 3 * width, size = weight_gradients_size(D, H);
  for (int64_t i = first; i < last; ++i) {
    float* out = i < D        ? to.kernel + i * 3 * H
                 : i < D + H  ? to.recurrent + (i - D) * 3 * H
                 : i == D + H ? to.bias
                              : to.recurrent_bias;
    for (int64_t gate = 0; gate < (i == D + H + 1 ? 1 : 3); ++gate) {
      for (int64_t column = 0; column < H; column += kLanes) {
        const float* from = partial + i * row + gate * width + column;
        V sum = load(from);
        for (int64_t block = 1; block < count; ++block) sum += load(from + block * size);
        store(out + gate * H + column, sum, H - column);
      }
    }
  }
}
