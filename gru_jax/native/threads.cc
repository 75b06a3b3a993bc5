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
int current_cpu() { return sched_getcpu(); }

// Moves this thread from a processor to another one that it may use, if there is one.
void migrate_off_cpu(int processor) {
  cpu_set_t allowed, others;
  if (processor < 0 || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  others = allowed;
  CPU_CLR(processor, &others);
  if (CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0)
    sched_setaffinity(0, sizeof allowed, &allowed);
}
#else
int current_cpu() { return -1; }
void migrate_off_cpu(int) {}
#endif

#if defined(__SANITIZE_THREAD__)
std::atomic<int64_t> ended{0};

// The thread sanitizer cannot see how XLA's pool hands a closure over, either: each gets a thread of its own.
void enqueue(const Schedule&, std::function<void()> closure) { std::thread(std::move(closure)).detach(); }
#else
void enqueue(const Schedule& schedule, std::function<void()> closure) { schedule(std::move(closure)); }
#endif

}  // namespace

#if defined(__SANITIZE_THREAD__)
TsanCallOrder::TsanCallOrder() { ended.load(std::memory_order_acquire); }
TsanCallOrder::~TsanCallOrder() { ended.fetch_add(1, std::memory_order_acq_rel); }
#endif

// The closure leaves the caller's processor: where few processors share a cache, Linux may wake a thread on the
// processor of its waker, which goes on working, and leave it there for milliseconds while another processor is idle.
bool spawn_helper(const Schedule& schedule, std::function<void()> closure) {
  struct HelperTask {
    std::function<void()> closure;
    std::thread::id caller = std::this_thread::get_id();
    int caller_cpu = current_cpu();
    bool refused = false;  // only the caller's thread reads and writes it

    explicit HelperTask(std::function<void()> closure) : closure(std::move(closure)) {}

    void run() noexcept {
      if (std::this_thread::get_id() == caller) {
        refused = true;
        return;
      }
      if (caller_cpu == current_cpu()) migrate_off_cpu(caller_cpu);
      FlushDenormals flush;
      closure();
    }
  };
  const auto help = std::make_shared<HelperTask>(std::move(closure));
  enqueue(schedule, [help] { help->run(); });
  return !help->refused;
}

}  // namespace gru_jax
