// Tasks divided among the caller and the threads of XLA's pool.
#ifndef GRU_JAX_NATIVE_PARALLEL_H_
#define GRU_JAX_NATIVE_PARALLEL_H_

#include <cstdint>
#include <functional>

#include "threads.h"

namespace gru_jax {

// Runs task(0), …, task(tasks − 1) on up to `threads` threads, one of which is the caller, and returns when all are
// done. The caller takes tasks like the others, and waits only for those that another thread has begun: a busy pool
// makes this slower but cannot stop it. What a task or the scheduling throws is thrown here, once no thread is at a
// task any more; tasks that have not begun by then are left out.
void parallel_for(int64_t tasks, int64_t threads, const Schedule& schedule, const std::function<void(int64_t)>& task);

}  // namespace gru_jax

#endif
