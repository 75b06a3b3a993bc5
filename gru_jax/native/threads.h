// Threads of XLA's pool, as they come to help a caller.
#ifndef GRU_JAX_NATIVE_THREADS_H_
#define GRU_JAX_NATIVE_THREADS_H_

#include <cstdint>
#include <functional>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace gru_jax {

// Schedules a closure on some other thread. A pool may also run it at once, on the thread that schedules it, run it much later, or
// never.
using Schedule = std::function<void(std::function<void()>)>;

// Runs a closure, which must not throw, on some other thread, and not on the processor of the caller, which goes on. Denormals are
// flushed there. On the caller's own thread it is not run at all; false if that has been tried, so that no help will come.
bool begin(const Schedule& schedule, std::function<void()> closure);

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

// A call of a handler, to the thread sanitizer: it cannot see how XLA orders calls that share arrays. For it, a call comes after
// all that have ended.
class Visible {
#if defined(__SANITIZE_THREAD__)
 public:
  Visible();
  ~Visible();
#endif
};

}  // namespace gru_jax

#endif
