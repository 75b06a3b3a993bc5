#include "threads.h"

#include <atomic>
#include <memory>
#include <thread>
#include <utility>

#if defined(__linux__)
#include <sched.h>
#endif

namespace gru_jax {
namespace {

#if defined(__linux__)
int processor() { return sched_getcpu(); }

// Moves this thread to another processor that it may use, if there is one.
void leave(int processor) {
  cpu_set_t allowed, others;
  if (processor < 0 || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  others = allowed;
  CPU_CLR(processor, &others);
  if (CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
}
#else
int processor() { return -1; }
void leave(int) {}
#endif

#if defined(__SANITIZE_THREAD__)
std::atomic<int64_t> ended{0};

// The sanitizer cannot see how XLA's pool hands a closure over, either: each has a thread of its own.
void hand_over(const Schedule&, std::function<void()> closure) { std::thread(std::move(closure)).detach(); }
#else
void hand_over(const Schedule& schedule, std::function<void()> closure) { schedule(std::move(closure)); }
#endif

}  // namespace

#if defined(__SANITIZE_THREAD__)
Visible::Visible() { ended.load(std::memory_order_acquire); }
Visible::~Visible() { ended.fetch_add(1, std::memory_order_acq_rel); }
#endif

// Where few processors share a cache, Linux may wake a thread on the one where its waker goes on working, and leave it there for
// milliseconds while another is idle.
bool begin(const Schedule& schedule, std::function<void()> closure) {
  struct Help {
    std::function<void()> closure;
    std::thread::id caller = std::this_thread::get_id();
    int busy = processor();
    bool refused = false;  // of the caller's thread alone

    explicit Help(std::function<void()> closure) : closure(std::move(closure)) {}

    void come() noexcept {
      if (std::this_thread::get_id() == caller) {
        refused = true;
        return;
      }
      if (busy == processor()) leave(busy);
      FlushDenormals flush;
      closure();
    }
  };
  const auto help = std::make_shared<Help>(std::move(closure));
  hand_over(schedule, [help] { help->come(); });
  return !help->refused;
}

}  // namespace gru_jax
