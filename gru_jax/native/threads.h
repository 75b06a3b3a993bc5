// Help from threads of XLA's pool.
#ifndef GRU_JAX_NATIVE_THREADS_H_
#define GRU_JAX_NATIVE_THREADS_H_

#include <cstdint>
#include <functional>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace gru_jax {

// Schedules a closure on another thread. A pool may also run it at once, on the thread that schedules it, or much
// later, or never.
using Schedule = std::function<void(std::function<void()>)>;

// Schedules a closure, which must not throw, on another thread and on another processor than the caller's; denormals
// are flushed there. On the caller's own thread it does nothing; false if the pool has run it there, so that no help
// will come.
bool spawn_helper(const Schedule& schedule, std::function<void()> closure);

// While this lives, denormal numbers count as zero. Gradients that vanish over a long time become denormal, and some
// processors take a hundred times as long for them.
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

// Tells the thread sanitizer that a call of a handler comes after all calls that have ended: it cannot see how XLA
// orders calls that share arrays.
class TsanCallOrder {
#if defined(__SANITIZE_THREAD__)
 public:
  TsanCallOrder();
  ~TsanCallOrder();
#endif
};

}  // namespace gru_jax

#endif
