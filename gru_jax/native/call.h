// What a call of a handler is made of: parts of the rows, threads that take them, memory, packed weights.
#ifndef GRU_JAX_NATIVE_CALL_H_
#define GRU_JAX_NATIVE_CALL_H_

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>

#include "isa.h"
#include "parallel.h"
#include "stages.h"
#include "xla/ffi/api/ffi.h"

namespace gru_jax {

namespace ffi = xla::ffi;

constexpr int64_t kMostRows = 64;    // of a part; at most kChunk of walk.h
constexpr double kWorthwhile = 2e6;  // floating-point operations below which another thread is not woken
constexpr double kLong = 5e6;        // operations of a call in which it is worth while to wait a moment for another thread
constexpr int64_t kFewUses = 16;     // rows, over steps and sequences, for which a copy of the weights would not pay
constexpr double kRate = 50;         // operations of one thread in a ns, about
constexpr double kMeeting = 300;     // ns of a step that two threads may share, where they are near each other

#ifdef __linux__
inline uintptr_t page_size() {
  static const uintptr_t size = sysconf(_SC_PAGESIZE);
  return size;
}
#endif

// Asks for large pages under memory that a call is about to write, most often for the first time: if every small page of a fresh
// array had to be fetched from the system, that would take a noticeable share of the time of what fills it. NumPy does the same
// with its arrays. It is asked for the pages that arrays begin and end in, too, as arrays lie side by side: between them small pages
// would separate the large ones. Where it is refused nothing is lost.
inline void prefer_large_pages([[maybe_unused]] const void* memory, [[maybe_unused]] size_t bytes) {
#ifdef __linux__
  constexpr size_t kWorthwhileBytes = 1 << 22;
  if (bytes < kWorthwhileBytes) return;
  const uintptr_t page = page_size(), first = reinterpret_cast<uintptr_t>(memory) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + bytes + page - 1) / page * page;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Whether memory has been written before: at least the page in its middle is not one that the system has yet to provide.
inline bool is_resident([[maybe_unused]] const void* memory, [[maybe_unused]] size_t bytes) {
#ifdef __linux__
  unsigned char resident = 0;
  const uintptr_t middle = (reinterpret_cast<uintptr_t>(memory) + bytes / 2) / page_size() * page_size();
  return mincore(reinterpret_cast<void*>(middle), page_size(), &resident) == 0 && (resident & 1);
#else
  return false;
#endif
}

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<float, Free>;

inline Memory allocate(int64_t floats) {
  const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
  Memory memory(static_cast<float*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64))));
  prefer_large_pages(memory.get(), bytes);
  return memory;
}

// The rows of all groups, cut into parts.
struct Parts {
  int64_t groups, rows, each;

  Parts(int64_t groups, int64_t rows, int64_t most) : groups(groups), rows(rows), each(std::max<int64_t>(most, 1)) {}
  int64_t per_group() const { return (rows + each - 1) / each; }
  int64_t count() const { return groups * per_group(); }
  int64_t group(int64_t part) const { return part / per_group(); }
  int64_t first(int64_t part) const { return part % per_group() * each; }
  int64_t size(int64_t part) const { return std::min(each, rows - first(part)); }
};

// Rows of a part where each part sums its own gradient of the weights. It must not depend on the number of threads.
inline int64_t rows_for_gradient(int64_t rows, int64_t D, int64_t H) {
  const bool large = 3 * H * (D + H) > 1 << 18;  // weights that leave the second-level cache are read once for many rows
  const int64_t most = std::min(std::max<int64_t>(large ? 32 : 8, (rows + 15) / 16), kMostRows);
  const int64_t count = std::max<int64_t>((rows + most - 1) / most, 1);
  return (rows + count * 8 - 1) / (count * 8) * 8;
}

// The axes of a call, read off its operands.
struct Axes {
  int64_t steps, groups, rows, D, H;

  double flops() const { return 6.0 * steps * groups * rows * H * (D + H); }
};

struct Call {
  const Kernels& kernels;
  double flops;
  Schedule schedule;
  int64_t threads;

  Call(ffi::ThreadPool& pool, int64_t most, double flops)
      : kernels(gru_jax::kernels()),
        flops(flops),
        schedule([&pool](std::function<void()> task) { pool.Schedule(std::move(task)); }),
        threads(flops < kWorthwhile ? 1 : std::max<int64_t>(1, pool.num_threads())) {
    if (most > 0) threads = std::min(threads, most);
  }

  void each(int64_t tasks, const std::function<void(int64_t)>& task) const { run(tasks, threads, schedule, task); }
};

// About how long a step of so many rows takes one thread, in ns (measured, with AVX-512): activations, and a product that is bound
// by the reading of U or by arithmetic.
inline double step_time(int64_t rows, int64_t H) { return 1.5 * rows * H + H * H * std::max(0.1, 0.055 * rows); }

// Threads take parts in turn. While the last ones run, others may be idle, and help with as many.
inline int64_t helped(const Call& call, const Parts& parts) {
  const int64_t last = parts.count() % call.threads;
  return std::min(last, call.threads - last);
}

// Rows of a part where any division gives the same results, in whole tiles of eight: the most of those that leave least to the
// busiest thread. `may_share`: whether threads can share a part.
inline int64_t rows_for(const Call& call, const Axes& axes, bool may_share) {
  constexpr double kHalf = 0.55;  // what is left to a thread by help, a meeting in each step included
  int64_t best = 8;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t each = std::clamp<int64_t>((axes.rows + 7) / 8 * 8, 8, kMostRows); each >= 8; each -= 8) {
    const Parts parts(axes.groups, axes.rows, each);
    const int64_t last = parts.count() % call.threads;
    const bool shared = may_share && helped(call, parts) == last && step_time(std::min(each, axes.rows), axes.H) > kMeeting;
    const double rounds = parts.count() / call.threads + (last == 0 ? 0.0 : shared ? kHalf : 1.0);
    if (rounds * each < least) {
      least = rounds * each;
      best = each;
    }
  }
  return best;
}

// Weights of all groups, packed.
struct PackedGroups {
  Memory memory;
  std::unique_ptr<Packed[]> groups;
};

struct WeightOperands {
  const float *kernel = nullptr, *bias = nullptr, *recurrent = nullptr, *recurrent_bias = nullptr;  // null where not given
};

inline PackedGroups pack(const Call& call, const Axes& axes, const WeightOperands& from, bool reset_after, bool transposed) {
  const int64_t D = axes.D, H = axes.H;
  const bool few_uses = axes.steps * axes.rows <= kFewUses;
  const Weights weights = {
      .in_features = D, .features = H, .reset_after = reset_after, .transposed = transposed, .few_uses = few_uses};
  const int64_t size = (call.kernels.packed_size(weights) + 15) / 16 * 16;
  PackedGroups packed = {allocate(size * axes.groups), std::make_unique<Packed[]>(axes.groups)};
  if (!packed.memory) return packed;
  const bool alone = few_uses || (3 * H * (D + H) < 1 << 16 && call.flops < kLong);
  const int64_t members = alone ? 1 : (call.threads + axes.groups - 1) / axes.groups;
  call.each(axes.groups * members, [&](int64_t i) {
    const int64_t g = i / members;
    Weights group = weights;
    group.kernel = from.kernel ? from.kernel + g * D * 3 * H : nullptr;
    group.bias = from.bias ? from.bias + g * 3 * H : nullptr;
    group.recurrent = from.recurrent + g * H * 3 * H;
    group.recurrent_bias = from.recurrent_bias ? from.recurrent_bias + g * H : nullptr;
    const Share share = {.member = i % members, .members = members};
    const Packed where = call.kernels.pack(group, packed.memory.get() + g * size, share);
    if (share.member == 0) packed.groups[g] = where;
  });
  return packed;
}

inline ffi::Error out_of_memory() { return ffi::Error(ffi::ErrorCode::kResourceExhausted, "gru_jax: out of memory"); }

// Runs a kernel on every part, with memory of its own.
inline ffi::Error each_part(const Call& call, const Parts& parts, int64_t size, const std::function<void(int64_t, float*)>& kernel) {
  std::atomic<bool> failed{false};
  call.each(parts.count(), [&](int64_t part) {
    Memory memory = allocate(size);
    if (memory) {
      kernel(part, memory.get());
    } else {
      failed = true;
    }
  });
  return failed ? out_of_memory() : ffi::Error::Success();
}

// Runs a pass over every part.
template <class Job>
ffi::Error each_pass(const Call& call, const Parts& parts, const Pass<Job>& pass, const Sizes& largest,
                     const std::function<Job(int64_t)>& job_of) {
  const auto aligned = [](int64_t size) { return (size + 15) / 16 * 16; };
  const int64_t chunk = aligned(pass.chunk_size(largest)), alone = parts.count() - helped(call, parts);
  const int64_t slots = alone < parts.count() ? kInFlight : 1;
  const int64_t size = slots * chunk + aligned(pass.carry_size(largest));
  return each_part(call, parts, size, [&](int64_t part, float* memory) {
    const Job job = job_of(part);
    const auto slot = [&](int64_t i) { return memory + i % slots * chunk; };
    const int64_t count = call.kernels.chunks(job.in.sizes);
    const Stages stages = {
        .count = count,
        .duration = call.flops / kRate / parts.count(),
        .step = step_time(job.in.sizes.rows, job.in.sizes.features),
        .ahead = [&](int64_t i, const Share& share) { pass.ahead(job, i, slot(i), share); },
        .walk = [&](int64_t i, Share& share) { return pass.walk(job, i, slot(i), memory + slots * chunk, share); },
        .behind = [&](int64_t i, const Share& share) { pass.behind(job, i, slot(i), share); }};
    run_stages(stages, part >= alone && (count > 1 || call.flops >= kLong), call.schedule);
  });
}

}  // namespace gru_jax

#endif
