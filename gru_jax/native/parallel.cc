#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <utility>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <thread>
#endif

namespace gru_jax {
namespace {

// Numbers too small for full precision count as zero while this lives: gradients that vanish over a long time pass through
// them, and some processors take a hundred times as long for those.
class FlushDenormals {
 public:
#if defined(__SSE__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | (1 << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#endif
};

// What the threads of one call share. Helpers may begin after the call has returned, so they hold it by reference count, and
// they touch `task` only once they have claimed a task, which the caller then waits for.
struct Work {
  int64_t tasks;
  const std::function<void(int64_t)>& task;
  std::atomic<int64_t> next{0}, done{0};

  void take() {
    FlushDenormals flush;
    int64_t finished = 0;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks; ++finished) task(i);
    if (finished && done.fetch_add(finished, std::memory_order_acq_rel) + finished == tasks) done.notify_all();
  }

  void wait() {
    for (int64_t now; (now = done.load(std::memory_order_acquire)) < tasks;) done.wait(now, std::memory_order_acquire);
  }
};

#if defined(__SANITIZE_THREAD__)
// The sanitizer cannot see how XLA's pool hands a closure over, nor how XLA orders calls that share arrays. For it, each
// closure has a thread of its own, and a call comes after all that have ended.
std::atomic<int64_t> ended{0};

struct Visible {
  Visible() { ended.load(std::memory_order_acquire); }
  ~Visible() { ended.fetch_add(1, std::memory_order_acq_rel); }
  void begin(const Schedule&, std::function<void()> closure) { std::thread(std::move(closure)).detach(); }
};
#else
struct Visible {
  void begin(const Schedule& schedule, std::function<void()> closure) { schedule(std::move(closure)); }
};
#endif

}  // namespace

void run(int64_t tasks, int64_t threads, const Schedule& schedule, const std::function<void(int64_t)>& task) {
  if (tasks <= 0) return;
  Visible call;
  auto work = std::make_shared<Work>(tasks, task);
  for (int64_t helper = 1; helper < std::min(tasks, threads); ++helper) call.begin(schedule, [work] { work->take(); });
  work->take();
  work->wait();
}

}  // namespace gru_jax
