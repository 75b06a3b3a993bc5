// Tasks shared out among the caller and the threads of XLA's pool.
#ifndef GRU_JAX_NATIVE_PARALLEL_H_
#define GRU_JAX_NATIVE_PARALLEL_H_

#include <cstdint>
#include <functional>

namespace gru_jax {

// Schedules a closure on some other thread.
using Schedule = std::function<void(std::function<void()>)>;

// Runs task(0) … task(tasks − 1) on up to `threads` threads, of which the caller is one, and returns when all are done. The
// caller takes tasks like the others and waits only for those that another thread has begun: a pool that is busy, with other
// calls of this function say, makes it slower but cannot stop it.
void run(int64_t tasks, int64_t threads, const Schedule& schedule, const std::function<void(int64_t)>& task);

// What is done with each of `count` chunks: `ahead`, then `walk`, then `behind`.
struct Stages {
  int64_t count;
  std::function<void(int64_t)> ahead, walk, behind;
};

// Runs all stages of all chunks; each stage takes the chunks in order. With `helped`, another thread is asked to work ahead of
// the walk and behind it, on up to kInFlight chunks; so chunks i and i + kInFlight may share memory, without help all may. Again the
// caller does what nobody has begun, and waits only for what another thread is at.
constexpr int64_t kInFlight = 3;
void run_stages(const Stages& stages, bool helped, const Schedule& schedule);

}  // namespace gru_jax

#endif
