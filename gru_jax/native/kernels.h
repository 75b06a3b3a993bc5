// The interface between the FFI handlers, compiled once, and the kernels, compiled once for each instruction set.
//
// Only plain data crosses it, and this header includes nothing that contains code: the linker would merge an inline
// function that two instruction sets share, and might keep the copy whose instructions the processor does not have.
//
// Axes: T steps, B rows (sequences), D input features, H state features. All arrays are row-major float32. A kernel
// runs one block of rows that use one set of weights; its pointers are those of the block's first row.
#ifndef GRU_JAX_NATIVE_KERNELS_H_
#define GRU_JAX_NATIVE_KERNELS_H_

#include <stddef.h>
#include <stdint.h>

namespace gru_jax {

// An array (T, ..., row, width). `step` is the distance between two steps; rows are contiguous.
struct Series {
  const float* data = nullptr;
  int64_t step = 0;
};

struct MutableSeries {
  float* data = nullptr;
  int64_t step = 0;
};

// Booleans (T, ..., row); `data` is null where they are not given.
struct Flags {
  const uint8_t* data;
  int64_t step;
};

// The matrices of the gates in the layout that products read: blocks of columns, one vector wide. The members are the
// distances between two rows of a block, two blocks, and two gates.
struct GateMatrices {
  const float* data;
  int64_t row, block, gate;
};

// One set of weights in the layout that products read; see `pack_weights`.
struct PackedWeights {
  GateMatrices kernel;                          // W: from x to the three gates
  const float* kernel_transposed = nullptr;     // Wᵀ: from the cotangents of the gates to that of x
  GateMatrices recurrent;                       // U: from h to the three gates
  const float* recurrent_transposed = nullptr;  // Uᵀ
  const float* bias;                            // b, (3, padded H)
  const float* recurrent_bias;                  // c, (padded H)
};

struct Sizes {
  int64_t steps, rows, in_features, features;
  bool reset_after, reverse;
};

// The activation φ of the candidate.
enum class Candidate { kTanh, kSigmoid };

// What the states and their vjp both read.
struct Recurrence {
  Sizes sizes;
  Candidate candidate;
  Series xs;
  const float* h_0;
  const float* reset_state;   // the state before a step that resets
  int64_t reset_row;          // the distance between its rows; 0 if all rows share one
  const float* dropout_mask;  // null where there is none
  Flags mask, resets;
  PackedWeights weights;
};

// The preactivations of r, z and n, and q = h U_n + c, which the reset gate multiplies. Reset before has no q.
enum Preactivation { kPreR = 0, kPreZ = 1, kPreN = 2, kPreQ = 3, kPreactivations = 4 };

struct States {
  Recurrence in;
  MutableSeries hs;
  MutableSeries saved[kPreactivations];  // null where they are not saved
  bool stream_saved;                     // whether saved preactivations bypass the caches
};

struct StatesVjp {
  Recurrence in;
  Series hs, ct;
  Series saved[kPreactivations];  // null where they were not saved
  MutableSeries d_xs;             // null where it is not asked for
  float* d_h_0;
  float* d_reset_state;  // null where it is not asked for
  float* d_weights;  // null where none is asked for; else D rows of dW, H of dU, one of db, one of dc, each 3 padded H
                     // wide
};

struct LinearRecurrence {
  Sizes sizes;                // in_features is not used
  Series coefficients[5];     // z, r, c_r, c_z, a_n: (T, period, H)
  Flags mask, resets;         // (T, period)
  int64_t first_row, period;  // row i of the block reads row (first_row + i) % period of the coefficients and the flags
  const float* dropout_mask;
  Series source;
  PackedWeights weights;
  MutableSeries ys;
};

struct Weights {
  int64_t in_features, features;
  const float *kernel = nullptr, *recurrent = nullptr, *bias = nullptr,
              *recurrent_bias = nullptr;  // biases may be null
  bool reset_after;
  bool transposed;  // whether the transposed matrices are needed, too
  bool few_uses;    // whether the weights are used so few times that copying them would not pay
};

struct WeightGradients {
  float *kernel, *recurrent, *bias, *recurrent_bias;
};

// The share of some work that a thread does: all of it, or that of one member of several. Two threads that do every
// stage of a block together divide steps and rows where these are independent. In the recurrence they divide columns.
// As each step needs all columns of the step before, they meet at a barrier, behind which each sees what the other has
// written.
struct WorkShare {
  int64_t member = 0, members = 1;
  // False if the other thread does the rest alone. In the thread that goes on, `members` may have changed.
  bool (*barrier)(WorkShare&) = nullptr;
  void* team = nullptr;
};

// A pass over all steps of a block of rows, in chunks of time i = 0, 1, … in the direction of the pass. `prologue` is
// what a chunk needs before the recurrence, `epilogue` what is computed from it afterwards: both are parallel over
// time, and another thread may do them. Only `recur` must see the chunks one after the other; it returns false if the
// other thread goes on alone. Two threads also meet at a barrier between two stages of a chunk. Sizes are in floats;
// that of a block is enough for one of fewer rows.
template <class Job>
struct Pass {
  int64_t (*chunk_size)(const Sizes&);  // memory that stages of one chunk hand on
  int64_t (*carry_size)(const Sizes&);  // memory that `recur` keeps between chunks
  void (*prologue)(const Job&, int64_t i, float* chunk, const WorkShare&);
  bool (*recur)(const Job&, int64_t i, float* chunk, float* carry, WorkShare&);
  void (*epilogue)(const Job&, int64_t i, float* chunk, const WorkShare&);
};

// The kernels of one instruction set. Memory is aligned to 64 bytes; that of `linear_recurrence` is
// `linear_recurrence_scratch` floats.
struct Kernels {
  const char* name;
  int64_t (*packed_size)(const Weights&);
  PackedWeights (*pack)(const Weights&, float* memory, const WorkShare&);
  int64_t (*weight_gradients_size)(int64_t in_features, int64_t features);
  void (*reduce_weight_gradients)(const float* partial, int64_t count, int64_t in_features, int64_t features,
                                  int64_t first, int64_t last, const WeightGradients& to);
  int64_t (*chunks)(const Sizes&);  // of a pass
  Pass<States> states;
  Pass<StatesVjp> states_vjp;
  int64_t (*linear_recurrence_scratch)(const Sizes&);
  void (*linear_recurrence)(const LinearRecurrence&, bool transposed, float* scratch);
};

}  // namespace gru_jax

#endif
