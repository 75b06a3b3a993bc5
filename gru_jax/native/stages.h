// The stages of a pass over a part, shared out among the caller and one thread of XLA's pool.
#ifndef GRU_JAX_NATIVE_STAGES_H_
#define GRU_JAX_NATIVE_STAGES_H_

#include <cstdint>
#include <functional>

#include "kernels.h"
#include "threads.h"

namespace gru_jax {

// What is done with each of `count` chunks: `ahead`, then `walk`, then `behind`. About how long it takes one thread, in ns: all of
// it, and a step of the walk.
struct Stages {
  int64_t count;
  double duration, step;
  std::function<void(int64_t, const Share&)> ahead;
  std::function<bool(int64_t, Share&)> walk;
  std::function<void(int64_t, const Share&)> behind;
};

// Runs all stages of all chunks; each stage takes the chunks in order. With `helped`, another thread is asked to do half of every
// stage, or what is ahead of the walk and behind it, whichever is faster; then up to kInFlight chunks are at work at a time, so
// chunks i and i + kInFlight may share memory, without help all may. The caller does what nobody has begun, and waits only for what
// another thread is at, but for a moment at the beginning. What a stage throws, or scheduling, is thrown here, once no thread is at a
// stage any more.
constexpr int64_t kInFlight = 3;
void run_stages(const Stages& stages, bool helped, const Schedule& schedule);

}  // namespace gru_jax

#endif
