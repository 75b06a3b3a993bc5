#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <memory>

namespace gru_jax {
namespace {

// What the threads of one call share. Helpers may begin after the call has returned, so they hold it by reference count, and
// they touch `task` only once they have claimed a task, which the caller then waits for.
struct Work {
  int64_t tasks;
  const std::function<void(int64_t)>& task;
  std::atomic<int64_t> next{0}, done{0};

  void take() {
    int64_t finished = 0;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks; ++finished) task(i);
    if (finished && done.fetch_add(finished, std::memory_order_acq_rel) + finished == tasks) done.notify_all();
  }

  void wait() {
    for (int64_t now; (now = done.load(std::memory_order_acquire)) < tasks;) done.wait(now, std::memory_order_acquire);
  }
};

}  // namespace

void run(int64_t tasks, int64_t threads, const Schedule& schedule, const std::function<void(int64_t)>& task) {
  if (tasks <= 0) return;
  [[maybe_unused]] const Visible call;
  auto work = std::make_shared<Work>(tasks, task);
  for (int64_t helper = 1; helper < std::min(tasks, threads); ++helper) begin(schedule, [work] { work->take(); });
  FlushDenormals flush;
  work->take();
  work->wait();
}

}  // namespace gru_jax
