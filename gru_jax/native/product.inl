// Products of a few rows with a packed matrix, in register tiles.
//
// A matrix (K, N) is packed in blocks of columns, one vector wide: [block][k][lane], zero beyond N, with an odd number of rows
// to a block, so that neighbouring blocks do not compete for the same sets of a cache. A tile is R rows by P
// neighbouring blocks of each of G matrices ("gates"), accumulated in registers over all of K. Each entry of a product is
// summed in the order of k, in whatever tile it falls, so that results do not depend on how rows are divided.

INLINE int64_t blocks_of(int64_t n) { return (n + kLanes - 1) / kLanes; }
INLINE int64_t padded(int64_t n) { return blocks_of(n) * kLanes; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows or blocks [first, end).
struct Span {
  int64_t first, end;

  Span(int64_t count) : Span(0, count) {}
  Span(int64_t first, int64_t end) : first(first), end(end) {}
  INLINE_MEMBER int64_t count() const { return end - first; }
};

// A thread's share of n rows or blocks.
INLINE Span share_of(const Share& share, int64_t n) {
  if (share.members == 1) return n;
  return {n * share.member / share.members, n * (share.member + 1) / share.members};
}

// The distance of two blocks of a packed matrix of K rows.
INLINE int64_t block_size(int64_t K) { return (K | 1) * kLanes; }
INLINE int64_t packed_matrix(int64_t K, int64_t N) { return block_size(K) * blocks_of(N); }

// Rows [0, K) of a matrix with leading dimension ld, to a packed matrix; a thread's share of its blocks.
static void pack(const float* matrix, int64_t ld, int64_t K, int64_t N, float* packed, const Share& share) {
  const Span own = share_of(share, blocks_of(N));
  for (int64_t j = own.first; j < own.end; ++j) {
    float* block = packed + j * block_size(K);
    for (int64_t k = 0; k < K; ++k) {
      store(block + k * kLanes, load(matrix + k * ld + j * kLanes, N - j * kLanes));
    }
  }
}

// The same of the transposed matrix, to rows [at, at + K) of a packed matrix of `rows` rows: `matrix` is (N, K), and rows from K
// on, up to its padding, become zero.
static void pack_transposed(const float* matrix, int64_t ld, int64_t K, int64_t N, float* packed, int64_t rows, int64_t at,
                            const Share& share) {
  const Span own = share_of(share, blocks_of(N));
  for (int64_t j = own.first; j < own.end; ++j) {
    float* block = packed + j * block_size(rows) + at * kLanes;
    for (int64_t k = 0; k < padded(K); ++k) store(block + k * kLanes, V{});
    for (int64_t lane = 0; lane < least(kLanes, N - j * kLanes); ++lane) {
      const float* row = matrix + (j * kLanes + lane) * ld;
      for (int64_t k = 0; k < K; ++k) block[k * kLanes + lane] = row[k];
    }
  }
}

// The gates' matrices of K rows, packed one after the other.
INLINE Matrix packed_gates(const float* packed, int64_t K, int64_t N) {
  return {.data = packed, .row = kLanes, .block = block_size(K), .gate = packed_matrix(K, N)};
}

INLINE Matrix from_block(Matrix matrix, int64_t block) {
  matrix.data += block * matrix.block;
  return matrix;
}

// The same in their layout in JAX, of N columns each, whole vectors.
INLINE Matrix gates_in_place(const float* matrix, int64_t N) { return {.data = matrix, .row = 3 * N, .block = kLanes, .gate = N}; }

// acc[r][p][g] += a[r] · B_g, columns of block p; `matrix.data` is that of the first block.
template <int R, int P, int G>
INLINE void multiply(const float* const* a, int64_t K, const Matrix& matrix, V (&acc)[R][P][G]) {
  const float* b = matrix.data;
  const int64_t block = matrix.block, gate = matrix.gate;
  const float* row[R];
  unrolled<R>([&](int r) INLINE_LAMBDA { row[r] = a[r]; });
  for (int64_t k = 0; k < K; ++k, b += matrix.row) {
    V w[P][G];
    unrolled<P, G>([&](int p, int g) INLINE_LAMBDA { w[p][g] = load(b + p * block + g * gate); });
    unrolled<R>([&](int r) INLINE_LAMBDA {
      V x = all(row[r][k]);
      unrolled<P, G>([&](int p, int g) INLINE_LAMBDA { acc[r][p][g] += x * w[p][g]; });
    });
  }
}

template <int R, int P, int G>
INLINE void multiply(const float* const* a, int64_t K, const float* b, int64_t block, int64_t gate, V (&acc)[R][P][G]) {
  multiply<R, P, G>(a, K, {.data = b, .row = kLanes, .block = block, .gate = gate}, acc);
}

// Neighbouring blocks that a tile of R rows and G gates spans, so that its sums and one step's weights are in registers. A
// single row, whose weights need none, takes more, or each sum would wait for itself.
template <int R, int G>
constexpr int most_blocks() {
  constexpr int fit = R == 1 ? 12 / G : (kRegisters - 1) / ((R + 1) * G), most = R == 1 ? 8 : 4;
  return fit < 1 ? 1 : fit > most ? most : fit;
}

// Covers rows × blocks with tiles: calls tile.template run<R, P>(row, block). Tiles of all rows follow each other before
// the next blocks, which thereby stay in the first-level cache.
template <int R, int P, class Tile>
INLINE void spans(const Tile& tile, int64_t row, int64_t block, int64_t end) {
  for (; block + P <= end; block += P) tile.template run<R, P>(row, block);
  if constexpr (P > 1) {
    if (block < end) spans<R, (P > 4 ? P / 2 : P - 1)>(tile, row, block, end);
  }
}

template <int R, int G, class Tile>
INLINE int64_t rows_of(const Tile& tile, int64_t row, int64_t rows, int64_t block, int64_t end) {
  for (; row + R <= rows; row += R) spans<R, most_blocks<R, G>()>(tile, row, block, end);
  if constexpr (R > 1) return rows_of<R / 2, G>(tile, row, rows, block, end);
  return row;
}

// The blocks that one tile of so many rows spans.
template <int G>
INLINE int64_t width_of(int64_t rows) {
  return rows >= kTall ? most_blocks<kTall, G>()
         : rows >= 4   ? most_blocks<4, G>()
         : rows >= 2   ? most_blocks<2, G>()
                       : most_blocks<1, G>();
}

// How blocks [first, end) of the product that every step has, with K rows, are covered: in tiles of `width` blocks, of which
// the last begins at `last`.
struct Order {
  int64_t width, first, last, end;
};

// A single row does little else than wait for weights: its tiles are no wider than what stays in the first-level cache.
template <int G>
static Order order_of(int64_t rows, Span blocks, int64_t K) {
  constexpr int64_t kFirstLevel = 32 * 1024 / sizeof(float);
  const int64_t most = width_of<G>(rows), stays = kFirstLevel / (G * block_size(K));
  const int64_t width = rows == 1 && stays > 0 ? least(most, stays) : most;
  return {.width = width,
          .first = blocks.first,
          .last = blocks.first + (blocks.count() - 1) / width * width,
          .end = blocks.end};
}

// One step's product. If every other step goes back, from the last blocks to the first, it finds in the first-level cache those
// that the step before has ended with.
template <int G, class Tile>
static void cover(const Tile& tile, Span rows, const Order& order, bool back) {
  const int64_t by = back ? -order.width : order.width;
  for (int64_t block = back ? order.last : order.first; order.first <= block && block <= order.last; block += by) {
    rows_of<kTall, G>(tile, rows.first, rows.end, block, least(block + order.width, order.end));
  }
}

template <int G, class Tile>
static void cover(const Tile& tile, Span rows, Span blocks) {
  const Order order = {
      .width = width_of<G>(rows.count()), .first = blocks.first, .last = blocks.end - 1, .end = blocks.end};
  cover<G>(tile, rows, order, false);
}

// out[m] = init + a[m] · B for all rows m: a plain product, where `init` is a padded row of N or null.
struct Plain {
  const float* const* a;
  int64_t K;
  Matrix b;
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

// sum[i][g] += Σ_m a[m][i] b_g[m]: outer products summed over M rows, for I rows of the sum and one block of columns of each of
// G gates. lda and ldb are the distances of two rows of a and b, `row` and `gate` those of two rows and two gates of the sum.
template <int R, int G>
INLINE void outer_tile(const float* a, int64_t lda, const float* const (&b)[G], int64_t ldb, int64_t M, float* sum,
                       int64_t row, int64_t gate) {
  V acc[R][G];
  unrolled<R, G>([&](int r, int g) INLINE_LAMBDA { acc[r][g] = load(sum + r * row + g * gate); });
  for (int64_t m = 0; m < M; ++m) {
    V w[G];
    unrolled<G>([&](int g) INLINE_LAMBDA { w[g] = load(b[g] + m * ldb); });
    unrolled<R>([&](int r) INLINE_LAMBDA {
      V x = all(a[m * lda + r]);
      unrolled<G>([&](int g) INLINE_LAMBDA { acc[r][g] += x * w[g]; });
    });
  }
  unrolled<R, G>([&](int r, int g) INLINE_LAMBDA { store(sum + r * row + g * gate, acc[r][g]); });
}

template <int G, int R = kTall>
static void outer(const float* a, int64_t lda, const float* const (&b)[G], int64_t ldb, int64_t M, int64_t I, float* sum,
                  int64_t row, int64_t gate) {
  int64_t i = 0;
  for (; i + R <= I; i += R) outer_tile<R, G>(a + i, lda, b, ldb, M, sum + i * row, row, gate);
  if constexpr (R > 1) {
    if (i < I) outer<G, R / 2>(a + i, lda, b, ldb, M, I - i, sum + i * row, row, gate);
  }
}
