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

// A thread's share of a chunk; false if the rest is left to the other.
bool chunk(const Stages& stages, int64_t i, Share& share) {
  stages.ahead(i, share);
  if (share.members > 1 && !share.meet(share)) return false;
  if (!stages.walk(i, share)) return false;
  stages.behind(i, share);
  return true;
}

// One thread walks, another works ahead of it and behind it; both do what else there is while they would wait. From chunk `first` on.
class Line {
 public:
  explicit Line(const Stages& stages) : stages_(stages), count_(stages.count) {}

  void start(int64_t first) { ahead_ = walked_ = behind_ = first; }

  void walk() {
    for (int64_t i = walked_; i < count_; ++i) {
      if (!aside_until([this, i] { return ahead_ > i; })) return;
      stages_.walk(i, alone_);
      const std::lock_guard lock(mutex_);
      walked_ = i + 1;
      changed_.notify_all();
    }
    help();
  }

  void help() {
    aside_until([this] { return behind_ == count_; });
  }

  // Lets both threads go.
  void stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }

 private:
  // Works ahead of the walk or behind it, or waits for who does, until a condition holds; false if all was stopped.
  template <class Condition>
  bool aside_until(Condition reached) {
    std::unique_lock lock(mutex_);
    while (!stopped_ && !reached()) {
      if (!busy_ && ahead_ < std::min(count_, behind_ + kInFlight)) {
        aside(lock, stages_.ahead, ahead_);
      } else if (!busy_ && behind_ < walked_) {
        aside(lock, stages_.behind, behind_);
      } else {
        changed_.wait(lock);
      }
    }
    return !stopped_;
  }

  void aside(std::unique_lock<std::mutex>& lock, const std::function<void(int64_t, const Share&)>& stage, int64_t& done) {
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
  Share alone_;
  bool busy_ = false;  // whether a thread is ahead or behind
  bool stopped_ = false;
  int64_t ahead_ = 0, walked_ = 0, behind_ = 0;
};

void pause() {
#if defined(__SSE__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits for what another thread will do within a fraction of a step if it runs; false if that took longer, so that it did not.
template <class Condition>
bool spin_until(int64_t pauses, Condition reached) {
  for (int64_t i = 0; i < pauses; ++i) {
    if (reached()) return true;
    pause();
  }
  while (!reached()) std::this_thread::yield();
  return false;
}

// Where other work takes the processors, waiting for a helper costs more than it does: after each that was sent away so many
// passes of the process ask for none, twice as many each time in a row.
class Distrust {
 public:
  bool allows() {
    const int64_t left = left_.load(std::memory_order_relaxed);
    if (left > 0) left_.store(left - 1, std::memory_order_relaxed);
    return left <= 0;
  }

  void learn(bool reliable) {
    const int64_t next = reliable ? 0 : std::min<int64_t>(2 * passes_.load(std::memory_order_relaxed) + 1, 127);
    passes_.store(next, std::memory_order_relaxed);
    left_.store(next, std::memory_order_relaxed);
  }

 private:
  std::atomic<int64_t> passes_{0}, left_{0};
};

Distrust distrust;

// The caller and its helper. The caller begins alone; the helper joins at the first chunk that begins when it is there, and does
// half of every stage, or works aside. A helper that comes after the end does not touch `stages`.
class Team {
 public:
  explicit Team(const Stages& stages)
      : stages_(stages),
        count_(stages.count),
        line_(stages),
        patience_(std::max(2048.0, stages.duration / stages.count / 160)),
        limit_(4 * stages.duration + 1e6) {}

  // Throws what a stage of either thread has thrown, once the other has left.
  void lead() {
    attempt([this] { lead_all(); });
    dismiss();
    if (!failed_.load(std::memory_order_acquire)) return;
    if (begin_.load() < count_) spin_until(patience_, [this] { return gone_.load(std::memory_order_acquire); });
    std::rethrow_exception(error_);
  }

  void follow() noexcept {
    attempt([this] { follow_all(); });
    gone_.store(true, std::memory_order_release);
  }

  // A helper that has not joined yet never will.
  void dismiss() {
    int64_t undecided = -1;
    begin_.compare_exchange_strong(undecided, count_);
  }

 private:
  // Does something; an exception lets both threads go.
  template <class Action>
  void attempt(Action action) noexcept {
    try {
      action();
    } catch (...) {
      if (failed_.exchange(true)) return;
      error_ = std::current_exception();
      line_.stop();
    }
  }

  void lead_all() {
    constexpr double kPause = 1000;  // ns, fifty times as long as a pause
    for (double waited = 0; waited < stages_.duration && !arrived_.load(std::memory_order_relaxed); waited += kPause) pause();
    Share share;
    int64_t i = 0;
    for (; i < count_ && !joined_at(i); ++i) chunk(stages_, i, share);
    if (i == count_) return;
    share = {.member = 0, .members = 2, .meet = meet, .team = this};
    half_.store(are_near(share), std::memory_order_relaxed);
    meet(share);  // one more than kTrials, after which the helper knows
    if (half_.load(std::memory_order_relaxed)) {
      while (i < count_ && chunk(stages_, i, share)) ++i;
      meet(share);
    } else {
      line_.walk();
    }
    distrust.learn(share.members == 2);
  }

  // Whether the helper is there to begin with chunk i.
  bool joined_at(int64_t i) {
    if (!arrived_.load(std::memory_order_acquire)) return false;
    line_.start(i);
    int64_t undecided = -1;
    return begin_.compare_exchange_strong(undecided, i);
  }

  // A helper gives up where the caller does not come to the next chunk, which may wait for what this thread would do instead.
  void follow_all() {
    using Clock = std::chrono::steady_clock;
    arrived_.store(true, std::memory_order_release);
    const auto late = Clock::now() + std::chrono::duration<double, std::nano>(limit_);
    spin_until(patience_, [&] { return begin_.load(std::memory_order_acquire) >= 0 || Clock::now() > late; });
    dismiss();
    int64_t i = begin_.load(std::memory_order_acquire);
    if (i == count_) return;
    Share share = {.member = 1, .members = 2, .meet = meet, .team = this};
    for (int trial = 0; trial <= kTrials; ++trial) {
      if (!meet(share)) return;
    }
    if (!half_.load(std::memory_order_relaxed)) return line_.help();
    for (; i < count_; ++i) {
      if (!chunk(stages_, i, share)) return;
    }
    meet(share);
  }

  // Whether the processors of the two are near enough each other for a meeting in every step, which saves half of it: with states
  // to hand over a meeting takes half as long again as without (measured).
  bool are_near(Share& share) {
    const auto now = [] { return std::chrono::steady_clock::now(); };
    meet(share);
    const auto before = now();
    for (int trial = 1; trial < kTrials; ++trial) meet(share);
    const double meeting = std::chrono::duration<double, std::nano>(now() - before).count() / (kTrials - 1);
    return 3 * meeting < stages_.step;
  }

  static bool meet(Share& share) {
    if (share.members == 1) return true;
    Team& team = *static_cast<Team*>(share.team);
    return share.member == 0 ? team.meet_helper(share) : team.meet_caller();
  }

  // A helper that is late, as where other work takes its processor, but for once in many times, is sent away; the caller goes on
  // alone.
  bool meet_helper(Share& share) {
    const int64_t n = met_[0].value.load(std::memory_order_relaxed) + 1;
    if (unreliable_) last_.store(n, std::memory_order_relaxed);
    met_[0].value.store(n, std::memory_order_release);
    if (!spin_until(patience_, [this, n] { return met_[1].value.load(std::memory_order_acquire) >= n || failed_; })) {
      unreliable_ = ++late_ > n / 512;
    }
    if (failed_) return false;
    if (last_.load(std::memory_order_relaxed) == n) share.members = 1;
    return true;
  }

  bool meet_caller() {
    const int64_t n = met_[1].value.load(std::memory_order_relaxed) + 1;
    met_[1].value.store(n, std::memory_order_release);
    spin_until(patience_, [this, n] { return met_[0].value.load(std::memory_order_acquire) >= n || failed_; });
    return !failed_ && last_.load(std::memory_order_relaxed) != n;
  }

  static constexpr int kTrials = 9;

  const Stages& stages_;
  const int64_t count_;
  Line line_;
  const int64_t patience_;  // pauses, of about 20 ns: an eighth of a chunk, as halves of a stage need not take the same time
  const double limit_;      // ns that the helper waits for the caller
  int64_t late_ = 0;  // how often the helper came late
  bool unreliable_ = false;
  std::atomic<bool> arrived_{false}, half_{false}, gone_{false}, failed_{false};
  std::exception_ptr error_;                                        // of the first that failed
  std::atomic<int64_t> begin_{-1};                                  // the helper's first chunk, once decided; count_: it does not join
  std::atomic<int64_t> last_{std::numeric_limits<int64_t>::max()};  // the meeting after which it is sent away
  struct alignas(64) Count {
    std::atomic<int64_t> value{0};
  } met_[2];  // how often each has come to a meeting, in a cache line of its own
};

}  // namespace

void run_stages(const Stages& stages, bool helped, const Schedule& schedule) {
  if (helped && distrust.allows()) {
    const auto team = std::make_shared<Team>(stages);
    try {
      if (begin(schedule, [team] { team->follow(); })) return team->lead();
    } catch (...) {
      team->dismiss();
      throw;
    }
  }
  Share alone;
  for (int64_t i = 0; i < stages.count; ++i) chunk(stages, i, alone);
}

}  // namespace gru_jax
