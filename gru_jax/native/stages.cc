#include "stages.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>

namespace gru_jax {
namespace {

// A thread's share of a chunk; false if the other thread does the rest alone.
bool run_chunk(const Stages& stages, int64_t i, WorkShare& share) {
  stages.prologue(i, share);
  if (share.members > 1 && !share.barrier(share)) return false;
  if (!stages.recur(i, share)) return false;
  stages.epilogue(i, share);
  return true;
}

// The leader runs the recurrence of every chunk, the helper prologues and epilogues; the leader does these, too, while
// it waits.
class Pipeline {
 public:
  explicit Pipeline(const Stages& stages) : stages_(stages), count_(stages.count) {}

  // Begins with chunk `first`.
  void start(int64_t first) { prologues_ = recurred_ = epilogues_ = first; }

  void run_recurrence() {
    for (int64_t i = recurred_; i < count_; ++i) {
      if (!work_until([this, i] { return prologues_ > i; })) return;
      stages_.recur(i, alone_);
      const std::lock_guard lock(mutex_);
      recurred_ = i + 1;
      changed_.notify_all();
    }
    run_others();
  }

  // Prologues and epilogues, up to the last one.
  void run_others() {
    work_until([this] { return epilogues_ == count_; });
  }

  // Makes both threads return.
  void stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }

 private:
  // Runs prologues and epilogues, or waits for the thread that does, until a condition holds; false if the pipeline was
  // stopped.
  template <class Condition>
  bool work_until(Condition reached) {
    std::unique_lock lock(mutex_);
    while (!stopped_ && !reached()) {
      if (!busy_ && prologues_ < std::min(count_, epilogues_ + kInFlight)) {
        run_stage(lock, stages_.prologue, prologues_);
      } else if (!busy_ && epilogues_ < recurred_) {
        run_stage(lock, stages_.epilogue, epilogues_);
      } else {
        changed_.wait(lock);
      }
    }
    return !stopped_;
  }

  void run_stage(std::unique_lock<std::mutex>& lock, const std::function<void(int64_t, const WorkShare&)>& stage,
                 int64_t& done) {
    busy_ = true;
    lock.unlock();
    stage(done, alone_);
    lock.lock();
    busy_ = false;
    ++done;
    changed_.notify_all();
  }

  const Stages& stages_;
  const int64_t count_;
  std::mutex mutex_;
  std::condition_variable changed_;
  WorkShare alone_;
  bool busy_ = false;  // whether a thread is at a prologue or an epilogue
  bool stopped_ = false;
  int64_t prologues_ = 0, recurred_ = 0, epilogues_ = 0;  // how many chunks are done
};

void pause() {
#if defined(__SSE__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until a condition holds; false if that took more than so many pauses, as where the other thread does not run.
template <class Condition>
bool spin_until(int64_t pauses, Condition reached) {
  for (int64_t i = 0; i < pauses; ++i) {
    if (reached()) return true;
    pause();
  }
  while (!reached()) std::this_thread::yield();
  return false;
}

// Where other work takes the processors, waiting for a helper costs more than it saves. After each helper that was
// dismissed, some passes of the process ask for none: 1, 3, 7, … up to 127 for dismissals in a row.
class HelperBackoff {
 public:
  bool allows_helper() {
    const int64_t left = left_.load(std::memory_order_relaxed);
    if (left > 0) left_.store(left - 1, std::memory_order_relaxed);
    return left <= 0;
  }

  void record(bool reliable) {
    const int64_t next = reliable ? 0 : std::min<int64_t>(2 * passes_.load(std::memory_order_relaxed) + 1, 127);
    passes_.store(next, std::memory_order_relaxed);
    left_.store(next, std::memory_order_relaxed);
  }

 private:
  std::atomic<int64_t> passes_{0}, left_{0};
};

HelperBackoff helper_backoff;

// The caller, which leads, and its helper. The leader begins alone. The helper joins at the first chunk that begins
// after its arrival; then both share every stage, or form a pipeline. A helper that arrives after the end does not
// touch `stages`.
class Team {
 public:
  explicit Team(const Stages& stages)
      : stages_(stages),
        count_(stages.count),
        pipeline_(stages),
        spin_limit_(std::max(2048.0, stages.duration / stages.count / 160)),
        join_timeout_(4 * stages.duration + 1e6) {}

  // Throws what a stage of either thread has thrown, once the helper has left.
  void run_as_leader() {
    attempt([this] { lead(); });
    close();
    if (!failed_.load(std::memory_order_acquire)) return;
    if (first_chunk_.load() < count_)
      spin_until(spin_limit_, [this] { return helper_left_.load(std::memory_order_acquire); });
    std::rethrow_exception(error_);
  }

  void run_as_helper() noexcept {
    attempt([this] { help(); });
    helper_left_.store(true, std::memory_order_release);
  }

  // A helper that has not joined yet never will.
  void close() {
    int64_t undecided = -1;
    first_chunk_.compare_exchange_strong(undecided, count_);
  }

 private:
  // Runs an action; an exception makes both threads return.
  template <class Action>
  void attempt(Action action) noexcept {
    try {
      action();
    } catch (...) {
      if (failed_.exchange(true)) return;
      error_ = std::current_exception();
      pipeline_.stop();
    }
  }

  void lead() {
    constexpr double kPause = 1000;  // ns, fifty times as long as a pause
    for (double waited = 0; waited < stages_.duration && !arrived_.load(std::memory_order_relaxed); waited += kPause)
      pause();
    WorkShare share;
    int64_t i = 0;
    for (; i < count_ && !joined_at(i); ++i) run_chunk(stages_, i, share);
    if (i == count_) return;
    share = {.member = 0, .members = 2, .barrier = barrier, .team = this};
    splits_stages_.store(barrier_is_cheap(share), std::memory_order_relaxed);
    barrier(share);  // after it, the helper sees the decision
    if (splits_stages_.load(std::memory_order_relaxed)) {
      while (i < count_ && run_chunk(stages_, i, share)) ++i;
      barrier(share);
    } else {
      pipeline_.run_recurrence();
    }
    helper_backoff.record(share.members == 2);
  }

  // Whether the helper has arrived, and begins with chunk i.
  bool joined_at(int64_t i) {
    if (!arrived_.load(std::memory_order_acquire)) return false;
    pipeline_.start(i);
    int64_t undecided = -1;
    return first_chunk_.compare_exchange_strong(undecided, i);
  }

  // The helper gives up if the leader does not come to its next chunk: it may wait for other work of this very thread.
  void help() {
    using Clock = std::chrono::steady_clock;
    arrived_.store(true, std::memory_order_release);
    const auto late = Clock::now() + std::chrono::duration<double, std::nano>(join_timeout_);
    spin_until(spin_limit_, [&] { return first_chunk_.load(std::memory_order_acquire) >= 0 || Clock::now() > late; });
    close();
    int64_t i = first_chunk_.load(std::memory_order_acquire);
    if (i == count_) return;
    WorkShare share = {.member = 1, .members = 2, .barrier = barrier, .team = this};
    for (int trial = 0; trial <= kTrials; ++trial) {
      if (!barrier(share)) return;
    }
    if (!splits_stages_.load(std::memory_order_relaxed)) return pipeline_.run_others();
    for (; i < count_; ++i) {
      if (!run_chunk(stages_, i, share)) return;
    }
    barrier(share);
  }

  // Whether the two processors are near enough for a barrier in every step, which saves half of the step. With states
  // to hand over a barrier takes half as long again as here (measured), hence the factor of 3.
  bool barrier_is_cheap(WorkShare& share) {
    const auto now = [] { return std::chrono::steady_clock::now(); };
    barrier(share);
    const auto before = now();
    for (int trial = 1; trial < kTrials; ++trial) barrier(share);
    const double barrier_ns = std::chrono::duration<double, std::nano>(now() - before).count() / (kTrials - 1);
    return 3 * barrier_ns < stages_.step;
  }

  static bool barrier(WorkShare& share) {
    if (share.members == 1) return true;
    Team& team = *static_cast<Team*>(share.team);
    return share.member == 0 ? team.barrier_of_leader(share) : team.barrier_of_helper();
  }

  // A helper that is late more than once in 512 barriers, as where other work takes its processor, is dismissed, and
  // the leader goes on alone.
  bool barrier_of_leader(WorkShare& share) {
    const int64_t n = arrivals_[0].value.load(std::memory_order_relaxed) + 1;
    if (unreliable_) last_barrier_.store(n, std::memory_order_relaxed);
    arrivals_[0].value.store(n, std::memory_order_release);
    if (!spin_until(spin_limit_,
                    [this, n] { return arrivals_[1].value.load(std::memory_order_acquire) >= n || failed_; })) {
      unreliable_ = ++late_ > n / 512;
    }
    if (failed_) return false;
    if (last_barrier_.load(std::memory_order_relaxed) == n) share.members = 1;
    return true;
  }

  bool barrier_of_helper() {
    const int64_t n = arrivals_[1].value.load(std::memory_order_relaxed) + 1;
    arrivals_[1].value.store(n, std::memory_order_release);
    spin_until(spin_limit_, [this, n] { return arrivals_[0].value.load(std::memory_order_acquire) >= n || failed_; });
    return !failed_ && last_barrier_.load(std::memory_order_relaxed) != n;
  }

  static constexpr int kTrials = 9;

  const Stages& stages_;
  const int64_t count_;
  Pipeline pipeline_;
  const int64_t
      spin_limit_;  // pauses of about 20 ns: an eighth of a chunk, as two shares of a stage take different times
  const double join_timeout_;  // ns that the helper waits for the leader
  int64_t late_ = 0;           // how often the helper was late
  bool unreliable_ = false;
  std::atomic<bool> arrived_{false}, splits_stages_{false}, helper_left_{false}, failed_{false};
  std::exception_ptr error_;              // of the thread that failed first
  std::atomic<int64_t> first_chunk_{-1};  // the helper's first chunk, once decided; count_ if it does not join
  std::atomic<int64_t> last_barrier_{std::numeric_limits<int64_t>::max()};  // after it, the helper is dismissed
  struct alignas(64) Count {
    std::atomic<int64_t> value{0};
  } arrivals_[2];  // at barriers, of each thread, in a cache line of its own
};

}  // namespace

void run_stages(const Stages& stages, bool helped, const Schedule& schedule) {
  if (helped && helper_backoff.allows_helper()) {
    const auto team = std::make_shared<Team>(stages);
    try {
      if (spawn_helper(schedule, [team] { team->run_as_helper(); })) return team->run_as_leader();
    } catch (...) {
      team->close();
      throw;
    }
  }
  WorkShare alone;
  for (int64_t i = 0; i < stages.count; ++i) run_chunk(stages, i, alone);
}

}  // namespace gru_jax
