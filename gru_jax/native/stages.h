// The stages of a pass over a part, shared out among the caller and one thread of XLA's pool.
#ifndef GRU_JAX_NATIVE_STAGES_H_
#define GRU_JAX_NATIVE_STAGES_H_

#include <cstdint>
#include <functional>

#include "kernels.h"
#include "threads.h"

namespace gru_jax {

// What is done with each of `count` chunks: `ahead`, then `walk`, then `behind`.
struct Stages {
  int64_t count;
  std::function<void(int64_t, const Share&)> ahead;
  std::function<bool(int64_t, Share&)> walk;
  std::function<void(int64_t, const Share&)> behind;
};

// What another thread is asked for: nothing; to do what is ahead of the walk and behind it, or to do half of every stage.
enum class Help { kNone, kAside, kHalf };

// Runs all stages of all chunks; each stage takes the chunks in order. Up to kInFlight chunks are at work at a time, so chunks i and
// i + kInFlight may share memory; without help all may. Again the caller does what nobody has begun, and waits only for what
// another thread is at, but for a moment at the beginning that is short beside so many floating-point operations.
constexpr int64_t kInFlight = 3;
void run_stages(const Stages& stages, Help help, double flops, const Schedule& schedule);

}  // namespace gru_jax

#endif
