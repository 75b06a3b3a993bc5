// The interface between the handlers, compiled once, and the kernels, compiled once for each instruction set.
//
// Nothing but plain data crosses it, and this header includes nothing that holds code: an inline function that two
// instruction sets share would be merged by the linker, and might then run where its instructions do not exist.
//
// Axes: T steps, B rows (sequences), D features of the input, H of the state. All arrays are row-major, float32. A kernel
// runs a part of the rows of one group (of weights); its pointers are those of the part's first row.
#ifndef GRU_JAX_NATIVE_KERNELS_H_
#define GRU_JAX_NATIVE_KERNELS_H_

#include <stddef.h>
#include <stdint.h>

namespace gru_jax {

// An array (T, ..., row, width): `step` is the distance of two steps; rows lie side by side.
struct Series {
  const float* data = nullptr;
  int64_t step = 0;
};

struct MutableSeries {
  float* data = nullptr;
  int64_t step = 0;
};

// Booleans (T, ..., row); null where there are none.
struct Flags {
  const uint8_t* data;
  int64_t step;
};

// Matrices of the gates, side by side, as products read them: in blocks of columns, one vector wide. The distances of two rows of
// a block, of two blocks, and of two gates.
struct Matrix {
  const float* data;
  int64_t row, block, gate;
};

// Weights of one group as products read them; see `pack_weights`.
struct Packed {
  Matrix kernel;                       // W: x to the three gates
  const float* kernel_transposed = nullptr;  // Wᵀ: cotangents of the gates to that of x
  Matrix recurrent;                    // U: h to the three gates
  const float* recurrent_transposed = nullptr;  // Uᵀ
  const float* bias;                   // b (3, padded H)
  const float* recurrent_bias;         // c (padded H)
};

struct Sizes {
  int64_t steps, rows, in_features, features;
  bool reset_after, reverse;
};

// What a cell's candidate is the activation of.
enum class Candidate { kTanh, kSigmoid };

// What both passes read.
struct Recurrence {
  Sizes sizes;
  Candidate candidate;
  Series xs;
  const float* h_0;
  const float* reset_state;  // takes the place of the state before a step that resets
  int64_t reset_row;         // the distance of its rows, 0 if all rows share one
  const float* drop;         // null where there is none
  Flags mask, resets;
  Packed weights;
};

// The preactivations of r, z and n, and q = h U_n + c, which the reset gate multiplies; q is null in reset before, and all
// are where they are not kept.
enum Kept { kKeptR = 0, kKeptZ = 1, kKeptN = 2, kKeptQ = 3, kKept = 4 };

struct States {
  Recurrence in;
  MutableSeries hs, kept[kKept];
  bool past_caches;  // whether what is kept had better not go through them
};

// Sums over a part's steps and rows, in rows of 3 padded H: D rows of dW, H rows of dU, one of db, one of dc.
struct Gradient {
  Recurrence in;
  Series hs, ct, kept[kKept];
  MutableSeries d_xs;  // null where it is not asked for
  float* d_h_0;
  float* d_reset_state;  // null where it is not asked for
  float* d_weights;      // null where none is asked for
};

struct Linear {
  Sizes sizes;                  // in_features and xs are not used
  Series coefficients[5];       // z, r, c_r, c_z, a_n: (T, period, H)
  Flags mask, resets;           // (T, period)
  int64_t first_row, period;    // row i of the part reads row (first_row + i) % period of the coefficients and the flags
  const float* drop;
  Series source;
  Packed weights;
  MutableSeries ys;
};

struct Weights {
  int64_t in_features, features;
  const float *kernel = nullptr, *recurrent = nullptr, *bias = nullptr, *recurrent_bias = nullptr;  // biases may be null
  bool reset_after;
  bool transposed;  // whether the transposed matrices are wanted too
  bool few_uses;    // whether they are used so few times that copying them would not pay
};

struct WeightGradients {
  float *kernel, *recurrent, *bias, *recurrent_bias;
};

// Which share of some work a thread does: all of it, or that of one member of several. Two that do each stage of a part together
// divide rows over steps and sequences where these do not depend on each other, and columns of the recurrence, of which each step
// needs all of the step before: so they meet, and see then what the other has written.
struct Share {
  int64_t member = 0, members = 1;
  bool (*meet)(Share&) = nullptr;  // false: what follows is left to the other, alone; `members` may have changed in the one that goes on
  void* team = nullptr;
};

// A pass over all steps of a part, in chunks of time, i = 0, 1, … in the direction of the pass. What a chunk needs before the
// recurrence, and what is made of it thereafter, is parallel over time: `ahead` and `behind`, which another thread may do. Only
// `walk` must see the chunks one after the other; it is false if it was left to the other of two threads. Between two stages of
// a chunk these meet, too. Sizes are in floats, and enough for a part of fewer rows, too.
template <class Job>
struct Pass {
  int64_t (*chunk_size)(const Sizes&);  // of the memory that hands a chunk on from stage to stage
  int64_t (*carry_size)(const Sizes&);  // of the memory that the walk keeps from chunk to chunk
  void (*ahead)(const Job&, int64_t i, float* chunk, const Share&);
  bool (*walk)(const Job&, int64_t i, float* chunk, float* carry, Share&);
  void (*behind)(const Job&, int64_t i, float* chunk, const Share&);
};

// One instruction set's kernels. Memory is aligned to 64 bytes; that of `linear` is `linear_scratch` floats.
struct Kernels {
  const char* name;
  int64_t (*packed_size)(const Weights&);
  Packed (*pack)(const Weights&, float* memory, const Share&);
  int64_t (*gradient_size)(int64_t in_features, int64_t features);
  void (*reduce)(const float* partial, int64_t parts, int64_t in_features, int64_t features, int64_t first,
                 int64_t last, const WeightGradients& to);
  int64_t (*chunks)(const Sizes&);  // of a pass
  Pass<States> states;
  Pass<Gradient> gradient;
  int64_t (*linear_scratch)(const Sizes&);
  void (*linear)(const Linear&, bool transposed, float* scratch);
};

}  // namespace gru_jax

#endif
