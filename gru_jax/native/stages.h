// The stages of a pass over a block of rows, divided between the caller and one thread of XLA's pool.
#ifndef GRU_JAX_NATIVE_STAGES_H_
#define GRU_JAX_NATIVE_STAGES_H_

#include <cstdint>
#include <functional>

#include "kernels.h"
#include "threads.h"

namespace gru_jax {

// What is done with each of `count` chunks: `prologue`, then `recur`, then `epilogue`; see `Pass`.
struct Stages {
  int64_t count;
  double duration, step;  // ns that one thread takes, about: for everything, and for one step of `recur`
  std::function<void(int64_t, const WorkShare&)> prologue;
  std::function<bool(int64_t, WorkShare&)> recur;
  std::function<void(int64_t, const WorkShare&)> epilogue;
};

// Runs all stages of all chunks; each stage takes the chunks in order. With `helped`, another thread is asked to do
// half of every stage, or the prologues and epilogues, whichever is faster. Then up to kInFlight chunks are in work at
// a time, so that chunks i and i + kInFlight may share memory; without help all may. The caller does what nobody has
// begun. It waits for work that another thread is at and, at the beginning, a moment for the helper. What a stage or
// the scheduling throws is thrown here, once no thread is at a stage any more.
constexpr int64_t kInFlight = 3;
void run_stages(const Stages& stages, bool helped, const Schedule& schedule);

}  // namespace gru_jax

#endif
