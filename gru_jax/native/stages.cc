#include "stages.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>

namespace gru_jax {
namespace {

constexpr Share kAlone = {0, 1, nullptr, nullptr};

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
      aside_until([this, i] { return ahead_ > i; });
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
  Share alone_ = kAlone;
  bool busy_ = false;  // whether a thread is ahead or behind
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
        patience_(std::max(2048.0, stages.duration / stages.count / 160)) {}

  void lead() {
    constexpr double kPause = 1000;  // ns, fifty times as long as a pause
    for (double waited = 0; waited < stages_.duration && !arrived_.load(std::memory_order_relaxed); waited += kPause) pause();
    Share share = kAlone;
    int64_t i = 0;
    for (; i < count_ && !arrived_.load(std::memory_order_acquire); ++i) chunk(stages_, i, share);
    line_.start(i);
    begin_.store(i, std::memory_order_release);
    if (i == count_) return;
    share = {0, 2, meet, this};
    half_.store(are_near(share), std::memory_order_relaxed);
    meet(share);  // one more than kTrials, after which the helper knows
    if (half_.load(std::memory_order_relaxed)) {
      for (; i < count_; ++i) chunk(stages_, i, share);
      meet(share);
    } else {
      line_.walk();
    }
    distrust.learn(share.members == 2);
  }

  void follow() {
    arrived_.store(true, std::memory_order_release);
    spin_until(patience_, [this] { return begin_.load(std::memory_order_acquire) >= 0; });
    int64_t i = begin_.load(std::memory_order_relaxed);
    if (i == count_) return;
    Share share = {1, 2, meet, this};
    for (int trial = 0; trial <= kTrials; ++trial) {
      if (!meet(share)) return;
    }
    if (!half_.load(std::memory_order_relaxed)) return line_.help();
    for (; i < count_; ++i) {
      if (!chunk(stages_, i, share)) return;
    }
    meet(share);
  }

 private:
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
    if (!spin_until(patience_, [this, n] { return met_[1].value.load(std::memory_order_acquire) >= n; })) {
      unreliable_ = ++late_ > n / 512;
    }
    if (last_.load(std::memory_order_relaxed) == n) share.members = 1;
    return true;
  }

  bool meet_caller() {
    const int64_t n = met_[1].value.load(std::memory_order_relaxed) + 1;
    met_[1].value.store(n, std::memory_order_release);
    spin_until(patience_, [this, n] { return met_[0].value.load(std::memory_order_acquire) >= n; });
    return last_.load(std::memory_order_relaxed) != n;
  }

  static constexpr int kTrials = 9;

  const Stages& stages_;
  const int64_t count_;
  Line line_;
  const int64_t patience_;  // pauses, of about 20 ns: an eighth of a chunk, as halves of a stage need not take the same time
  int64_t late_ = 0;  // how often the helper came late
  bool unreliable_ = false;
  std::atomic<bool> arrived_{false}, half_{false};
  std::atomic<int64_t> begin_{-1};                                  // the helper's first chunk, once it is known
  std::atomic<int64_t> last_{std::numeric_limits<int64_t>::max()};  // the meeting after which it is sent away
  struct alignas(64) Count {
    std::atomic<int64_t> value{0};
  } met_[2];  // how often each has come to a meeting, in a cache line of its own
};

}  // namespace

void run_stages(const Stages& stages, bool helped, const Schedule& schedule) {
  if (helped && distrust.allows()) {
    auto team = std::make_shared<Team>(stages);
    begin(schedule, [team] { team->follow(); });
    return team->lead();
  }
  Share alone = kAlone;
  for (int64_t i = 0; i < stages.count; ++i) chunk(stages, i, alone);
}

}  // namespace gru_jax
