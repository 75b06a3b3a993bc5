#include "stages.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>

namespace gru_jax {
namespace {

constexpr Share kAlone = {0, 1, nullptr, nullptr};

// What the caller and its helper share. A helper that begins late finds all done, and does not touch `stages`.
class Line {
 public:
  explicit Line(const Stages& stages) : stages_(stages), count_(stages.count) {}

  void walk() {
    for (int64_t i = 0; i < count_; ++i) {
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
bool spin_until(Condition reached) {
  constexpr int kSoon = 1 << 11;
  for (int i = 0; i < kSoon; ++i) {
    if (reached()) return true;
    pause();
  }
  while (!reached()) std::this_thread::yield();
  return false;
}

// Two threads that do half of each stage each, and meet between stages and within every step. The helper joins at the first chunk
// that begins when it is there; if it is late again and again, as where other work takes its processor, it is sent away: so the
// caller may be alone before and after. A helper that comes after the end does not touch `stages`.
class Pair {
 public:
  explicit Pair(const Stages& stages) : stages_(stages), count_(stages.count) {}

  void lead(double flops) {
    constexpr double kPause = 50'000;  // floating-point operations in fifty times the time of a pause
    for (double waited = 0; waited < flops && !arrived_.load(std::memory_order_relaxed); waited += kPause) pause();
    Share share = {0, 1, meet, this};
    bool joined = false;
    for (int64_t i = 0; i < count_; ++i) {
      if (!joined && arrived_.load(std::memory_order_acquire)) {
        joined = true;
        share.members = 2;
        begin_.store(i, std::memory_order_release);
      }
      chunk(i, share);
    }
    if (!joined) begin_.store(count_, std::memory_order_release);
    meet(share);
  }

  void follow() {
    arrived_.store(true, std::memory_order_release);
    spin_until([this] { return begin_.load(std::memory_order_acquire) >= 0; });
    Share share = {1, 2, meet, this};
    int64_t i = begin_.load(std::memory_order_relaxed);
    if (i == count_) return;
    for (; i < count_; ++i) {
      if (!chunk(i, share)) return;
    }
    meet(share);
  }

 private:
  bool chunk(int64_t i, Share& share) const {
    stages_.ahead(i, share);
    if (!meet(share) || !stages_.walk(i, share)) return false;
    stages_.behind(i, share);
    return true;
  }

  static bool meet(Share& share) {
    if (share.members == 1) return true;
    Pair& pair = *static_cast<Pair*>(share.team);
    return share.member == 0 ? pair.meet_helper(share) : pair.meet_caller();
  }

  bool meet_helper(Share& share) {
    const int64_t n = met_[0].value.load(std::memory_order_relaxed) + 1;
    if (unreliable_) last_.store(n, std::memory_order_relaxed);
    met_[0].value.store(n, std::memory_order_release);
    if (!spin_until([this, n] { return met_[1].value.load(std::memory_order_acquire) >= n; })) {
      unreliable_ = ++late_ > 4 + n / 256;
    }
    if (last_.load(std::memory_order_relaxed) == n) share.members = 1;
    return true;
  }

  bool meet_caller() {
    const int64_t n = met_[1].value.load(std::memory_order_relaxed) + 1;
    met_[1].value.store(n, std::memory_order_release);
    spin_until([this, n] { return met_[0].value.load(std::memory_order_acquire) >= n; });
    return last_.load(std::memory_order_relaxed) != n;
  }

  const Stages& stages_;
  const int64_t count_;
  int64_t late_ = 0;  // how often the helper came late
  bool unreliable_ = false;
  std::atomic<bool> arrived_{false};
  std::atomic<int64_t> begin_{-1};                                        // the helper's first chunk, once it is known
  std::atomic<int64_t> last_{std::numeric_limits<int64_t>::max()};        // the meeting after which it is sent away
  struct alignas(64) Count {
    std::atomic<int64_t> value{0};
  } met_[2];  // how often each has come to a meeting, in a cache line of its own
};

}  // namespace

void run_stages(const Stages& stages, Help help, double flops, const Schedule& schedule) {
  if (help == Help::kHalf) {
    auto pair = std::make_shared<Pair>(stages);
    begin(schedule, [pair] { pair->follow(); });
    return pair->lead(flops);
  }
  if (help == Help::kAside && stages.count > 1) {
    auto line = std::make_shared<Line>(stages);
    begin(schedule, [line] { line->help(); });
    return line->walk();
  }
  Share alone = kAlone;
  for (int64_t i = 0; i < stages.count; ++i) {
    stages.ahead(i, alone);
    stages.walk(i, alone);
    stages.behind(i, alone);
  }
}

}  // namespace gru_jax
