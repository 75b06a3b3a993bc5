#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>

namespace gru_jax {
namespace {

// What the threads of one call share. Helpers may begin after the call has returned. So they own a reference to this,
// and they touch `task` only after they have claimed a task, for which the caller then waits.
struct Work {
  int64_t tasks;
  const std::function<void(int64_t)>& task;
  std::atomic<int64_t> next{0}, done{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error{};  // of the task that failed first; the caller reads it once all are done

  Work(int64_t tasks, const std::function<void(int64_t)>& task) : tasks(tasks), task(task) {}

  void run_tasks() noexcept {
    int64_t finished = 0;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks; ++finished) attempt([&] { task(i); });
    if (finished && done.fetch_add(finished, std::memory_order_acq_rel) + finished == tasks) done.notify_all();
  }

  void wait() noexcept {
    for (int64_t now; (now = done.load(std::memory_order_acquire)) < tasks;) done.wait(now, std::memory_order_acquire);
  }

  // Runs an action unless a task has failed.
  template <class Action>
  void attempt(Action action) noexcept {
    if (failed.load(std::memory_order_relaxed)) return;
    try {
      action();
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }
};

}  // namespace

void parallel_for(int64_t tasks, int64_t threads, const Schedule& schedule, const std::function<void(int64_t)>& task) {
  if (tasks <= 0) return;
  [[maybe_unused]] const TsanCallOrder call;
  auto work = std::make_shared<Work>(tasks, task);
  work->attempt([&] {
    for (int64_t helper = 1; helper < std::min(tasks, threads); ++helper)
      spawn_helper(schedule, [work] { work->run_tasks(); });
  });
  FlushDenormals flush;
  work->run_tasks();
  work->wait();
  if (work->error) std::rethrow_exception(work->error);
}

}  // namespace gru_jax
