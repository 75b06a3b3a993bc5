// Products of a few rows with a packed matrix, in register tiles.
//
// A matrix (K, N) is packed in blocks of columns, one vector wide: [block][k][lane], zero beyond N. A block has an odd
// number of rows, so that neighbouring blocks do not compete for the same sets of a cache. A tile is R rows by P
// neighbouring blocks of each of G matrices ("gates"); its sums stay in registers over all of K. In every tile an entry
// is summed in the order of k, so that results do not depend on how rows are divided.

INLINE int64_t block_count(int64_t n) { return (n + kLanes - 1) / kLanes; }
INLINE int64_t padded(int64_t n) { return block_count(n) * kLanes; }
INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows or blocks [first, end).
struct Span {
  int64_t first, end;

  Span(int64_t count) : Span(0, count) {}
  Span(int64_t first, int64_t end) : first(first), end(end) {}
  INLINE_MEMBER int64_t count() const { return end - first; }
};

// A thread's share of n rows or blocks.
INLINE Span share_of(const WorkShare& share, int64_t n) {
  if (share.members == 1) return n;
  return {n * share.member / share.members, n * (share.member + 1) / share.members};
}

// The distance between two blocks of a packed matrix of K rows, and the size of one of N columns.
INLINE int64_t block_size(int64_t K) { return (K | 1) * kLanes; }
INLINE int64_t packed_matrix(int64_t K, int64_t N) { return block_size(K) * block_count(N); }

// Packs rows [0, K) of a matrix with leading dimension ld: a thread's share of the blocks.
static void pack(const float* matrix, int64_t ld, int64_t K, int64_t N, float* packed, const WorkShare& share) {
  const Span own = share_of(share, block_count(N));
  for (int64_t j = own.first; j < own.end; ++j) {
    float* block = packed + j * block_size(K);
    for (int64_t k = 0; k < K; ++k) {
      store(block + k * kLanes, load(matrix + k * ld + j * kLanes, N - j * kLanes));
    }
  }
}

// Packs the transpose of `matrix`, (N, K), into rows [first_row, first_row + padded K) of a packed matrix of `rows`
// rows; the padding becomes zero.
static void pack_transposed(const float* matrix, int64_t ld, int64_t K, int64_t N, float* packed, int64_t rows,
                            int64_t first_row, const WorkShare& share) {
  const Span own = share_of(share, block_count(N));
  for (int64_t j = own.first; j < own.end; ++j) {
    float* block = packed + j * block_size(rows) + first_row * kLanes;
    for (int64_t k = 0; k < padded(K); ++k) store(block + k * kLanes, V{});
    for (int64_t lane = 0; lane < min(kLanes, N - j * kLanes); ++lane) {
      const float* row = matrix + (j * kLanes + lane) * ld;
      for (int64_t k = 0; k < K; ++k) block[k * kLanes + lane] = row[k];
    }
  }
}

// The gates' matrices of K rows, packed one after the other.
INLINE GateMatrices packed_gates(const float* packed, int64_t K, int64_t N) {
  return {.data = packed, .row = kLanes, .block = block_size(K), .gate = packed_matrix(K, N)};
}

INLINE GateMatrices from_block(GateMatrices matrix, int64_t block) {
  matrix.data += block * matrix.block;
  return matrix;
}

// The gates' matrices of N columns, a multiple of a vector, where JAX has them.
INLINE GateMatrices gates_in_place(const float* matrix, int64_t N) {
  return {.data = matrix, .row = 3 * N, .block = kLanes, .gate = N};
}

// acc[r][p][g] += a[r] · B_g for the columns of block p, where `matrix.data` is the first block.
template <int R, int P, int G>
INLINE void multiply(const float* const* a, int64_t K, const GateMatrices& matrix, V (&acc)[R][P][G]) {
  const float* b = matrix.data;
  const int64_t block = matrix.block, gate = matrix.gate;
  const float* row[R];
  unrolled<R>([&](int r) INLINE_LAMBDA { row[r] = a[r]; });
  for (int64_t k = 0; k < K; ++k, b += matrix.row) {
    V w[P][G];
    unrolled<P, G>([&](int p, int g) INLINE_LAMBDA { w[p][g] = load(b + p * block + g * gate); });
    unrolled<R>([&](int r) INLINE_LAMBDA {
      V x = splat(row[r][k]);
      unrolled<P, G>([&](int p, int g) INLINE_LAMBDA { acc[r][p][g] += x * w[p][g]; });
    });
  }
}

template <int R, int P, int G>
INLINE void multiply(const float* const* a, int64_t K, const float* b, int64_t block, int64_t gate, V (&acc)[R][P][G]) {
  multiply<R, P, G>(a, K, {.data = b, .row = kLanes, .block = block, .gate = gate}, acc);
}

// The most neighbouring blocks of a tile of R rows and G gates whose sums, and the weights of one k, fit in registers.
// A single row reads its weights from memory, and takes more blocks: with few, each sum would wait for its own last
// addition.
template <int R, int G>
constexpr int most_blocks() {
  constexpr int fit = R == 1 ? 12 / G : (kRegisters - 1) / ((R + 1) * G), most = R == 1 ? 8 : 4;
  return fit < 1 ? 1 : fit > most ? most : fit;
}

// Tiles of R rows, P blocks wide and then narrower, from `block` to `end`: calls tile.template run<R, P>(row, block).
template <int R, int P, class Tile>
INLINE void tile_columns(const Tile& tile, int64_t row, int64_t block, int64_t end) {
  for (; block + P <= end; block += P) tile.template run<R, P>(row, block);
  if constexpr (P > 1) {
    if (block < end) tile_columns<R, (P > 4 ? P / 2 : P - 1)>(tile, row, block, end);
  }
}

// Tiles of R rows, then of fewer, from `row` to `rows`.
template <int R, int G, class Tile>
INLINE int64_t tile_rows(const Tile& tile, int64_t row, int64_t rows, int64_t block, int64_t end) {
  for (; row + R <= rows; row += R) tile_columns<R, most_blocks<R, G>()>(tile, row, block, end);
  if constexpr (R > 1) return tile_rows<R / 2, G>(tile, row, rows, block, end);
  return row;
}

// How many blocks wide the tiles of so many rows are.
template <int G>
INLINE int64_t tile_width(int64_t rows) {
  return rows >= kMaxTileRows ? most_blocks<kMaxTileRows, G>()
         : rows >= 4          ? most_blocks<4, G>()
         : rows >= 2          ? most_blocks<2, G>()
                              : most_blocks<1, G>();
}

// How blocks [first, end) are covered: by tiles of `width` blocks, of which the last one begins at `last`.
struct TilePlan {
  int64_t width, first, last, end;
};

// For the product of every step, of K rows. A single row mostly waits for weights: its tiles are no wider than what
// stays in the first-level cache.
template <int G>
static TilePlan tile_plan(int64_t rows, Span blocks, int64_t K) {
  constexpr int64_t kFirstLevelCache = 32 * 1024 / sizeof(float);
  const int64_t most = tile_width<G>(rows), stays = kFirstLevelCache / (G * block_size(K));
  const int64_t width = rows == 1 && stays > 0 ? min(most, stays) : most;
  return {.width = width,
          .first = blocks.first,
          .last = blocks.first + (blocks.count() - 1) / width * width,
          .end = blocks.end};
}

// All rows take the same blocks before the next ones, so that those stay in the first-level cache. With `back` the
// blocks go from the last to the first: if every other step does, it begins with the blocks that the step before has
// left in the cache.
template <int G, class Tile>
static void for_each_tile(const Tile& tile, Span rows, const TilePlan& plan, bool back) {
  const int64_t stride = back ? -plan.width : plan.width;
  for (int64_t block = back ? plan.last : plan.first; plan.first <= block && block <= plan.last; block += stride) {
    tile_rows<kMaxTileRows, G>(tile, rows.first, rows.end, block, min(block + plan.width, plan.end));
  }
}

template <int G, class Tile>
static void for_each_tile(const Tile& tile, Span rows, Span blocks) {
  const TilePlan plan = {
      .width = tile_width<G>(rows.count()), .first = blocks.first, .last = blocks.end - 1, .end = blocks.end};
  for_each_tile<G>(tile, rows, plan, false);
}

// out[m] = init + a[m] · B for all rows m. `init` is a padded row of N, or null for zero.
struct Gemm {
  const float* const* a;
  int64_t K;
  GateMatrices b;
  const float* init;
  float* const* out;
  int64_t N;

  template <int R, int P>
  INLINE_MEMBER void run(int64_t row, int64_t block) const {
    V acc[R][P][1];
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA { acc[r][p][0] = init ? load(init + (block + p) * kLanes) : V{}; });
    multiply<R, P, 1>(a + row, K, from_block(b, block), acc);
    unrolled<R, P>([&](int r, int p) INLINE_LAMBDA {
      int64_t column = (block + p) * kLanes;
      store(out[row + r] + column, acc[r][p][0], N - column);
    });
  }
};

// sum[i][g] += Σ_m a[m][i] b_g[m]: outer products summed over M rows, for I rows of the sum and one block of columns of
// each of G gates. lda and ldb are the distances between two rows of a and b; `row` and `gate` those between two rows
// and two gates of the sum.
template <int R, int G>
INLINE void accumulate_outer_tile(const float* a, int64_t lda, const float* const (&b)[G], int64_t ldb, int64_t M,
                                  float* sum, int64_t row, int64_t gate) {
  V acc[R][G];
  unrolled<R, G>([&](int r, int g) INLINE_LAMBDA { acc[r][g] = load(sum + r * row + g * gate); });
  for (int64_t m = 0; m < M; ++m) {
    V w[G];
    unrolled<G>([&](int g) INLINE_LAMBDA { w[g] = load(b[g] + m * ldb); });
    unrolled<R>([&](int r) INLINE_LAMBDA {
      V x = splat(a[m * lda + r]);
      unrolled<G>([&](int g) INLINE_LAMBDA { acc[r][g] += x * w[g]; });
    });
  }
  unrolled<R, G>([&](int r, int g) INLINE_LAMBDA { store(sum + r * row + g * gate, acc[r][g]); });
}

template <int G, int R = kMaxTileRows>
static void accumulate_outer(const float* a, int64_t lda, const float* const (&b)[G], int64_t ldb, int64_t M, int64_t I,
                             float* sum, int64_t row, int64_t gate) {
  int64_t i = 0;
  for (; i + R <= I; i += R) accumulate_outer_tile<R, G>(a + i, lda, b, ldb, M, sum + i * row, row, gate);
  if constexpr (R > 1) {
    if (i < I) accumulate_outer<G, R / 2>(a + i, lda, b, ldb, M, I - i, sum + i * row, row, gate);
  }
}
