#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
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
  static void begin(const Schedule&, std::function<void()> closure) { std::thread(std::move(closure)).detach(); }
};
#else
struct Visible {
  static void begin(const Schedule& schedule, std::function<void()> closure) { schedule(std::move(closure)); }
};
#endif

// What the caller and its helper share. A helper that begins late finds all done, and does not touch `stages`.
class Line {
 public:
  explicit Line(const Stages& stages) : stages_(stages), count_(stages.count) {}

  void walk() {
    for (int64_t i = 0; i < count_; ++i) {
      aside_until([this, i] { return ahead_ > i; });
      stages_.walk(i);
      const std::lock_guard lock(mutex_);
      walked_ = i + 1;
      changed_.notify_all();
    }
    help();
  }

  void help() {
    FlushDenormals flush;
    aside_until([this] { return behind_ == count_; });
  }

 private:
  // Works ahead of the walk or behind it, or waits for who does, until a condition holds.
  template <class Condition>
  void aside_until(Condition reached) {
    std::unique_lock lock(mutex_);
    while (!reached()) {
      if (!busy_ && ahead_ < std::min(count_, behind_ + kInFlight)) {
        aside(lock, stages_.ahead, ahead_);
      } else if (!busy_ && behind_ < walked_) {
        aside(lock, stages_.behind, behind_);
      } else {
        changed_.wait(lock);
      }
    }
  }

  void aside(std::unique_lock<std::mutex>& lock, const std::function<void(int64_t)>& stage, int64_t& done) {
    busy_ = true;
    lock.unlock();
    stage(done);
    lock.lock();
    busy_ = false;
    ++done;
    changed_.notify_all();
  }

  const Stages& stages_;
  const int64_t count_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool busy_ = false;  // whether a thread is ahead or behind
  int64_t ahead_ = 0, walked_ = 0, behind_ = 0;
};

}  // namespace

void run_stages(const Stages& stages, bool helped, const Schedule& schedule) {
  if (helped && stages.count > 1) {
    auto line = std::make_shared<Line>(stages);
    Visible::begin(schedule, [line] { line->help(); });
    return line->walk();
  }
  for (int64_t i = 0; i < stages.count; ++i) {
    stages.ahead(i);
    stages.walk(i);
    stages.behind(i);
  }
}

void run(int64_t tasks, int64_t threads, const Schedule& schedule, const std::function<void(int64_t)>& task) {
  if (tasks <= 0) return;
  [[maybe_unused]] const Visible call;
  auto work = std::make_shared<Work>(tasks, task);
  for (int64_t helper = 1; helper < std::min(tasks, threads); ++helper) Visible::begin(schedule, [work] { work->take(); });
  work->take();
  work->wait();
}

}  // namespace gru_jax
