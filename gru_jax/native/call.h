// What a call of a handler consists of: blocks of rows, the threads that take them, memory, packed weights.
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

constexpr int64_t kMaxBlockRows = 64;      // at most kChunk of chunks.inl
constexpr double kMinParallelFlops = 2e6;  // a call of fewer floating-point operations wakes no other thread
constexpr double kMinHelpedFlops = 5e6;    // a call of fewer does not wait for a helper
constexpr int64_t kFewUses = 16;           // rows, over steps and sequences, for which copying the weights does not pay
constexpr double kFlopsPerNs = 50;         // floating-point operations of one thread, about
constexpr double kMinSharedStepNs = 300;   // two threads do not share shorter steps

#ifdef __linux__
inline uintptr_t page_size() {
  static const uintptr_t size = sysconf(_SC_PAGESIZE);
  return size;
}
#endif

// Asks the system for large pages under memory that a call is about to write, most often for the first time. Fetching
// every small page of a fresh array takes a noticeable share of the time of filling it. (NumPy does the same.) The
// pages in which arrays begin and end are included: arrays are neighbours, and small pages between them would separate
// the large ones. A refusal does no harm.
inline void prefer_large_pages([[maybe_unused]] const void* memory, [[maybe_unused]] size_t bytes) {
#ifdef __linux__
  constexpr size_t kMinBytes = 1 << 22;
  if (bytes < kMinBytes) return;
  const uintptr_t page = page_size(), first = reinterpret_cast<uintptr_t>(memory) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + bytes + page - 1) / page * page;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Whether the system has provided memory already, which it does at the first write: judged by the page in the middle.
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

// The rows of every set of weights, divided into blocks of up to `block_rows`.
struct RowBlocks {
  int64_t weight_batch, rows, block_rows;

  RowBlocks(int64_t weight_batch, int64_t rows, int64_t block_rows)
      : weight_batch(weight_batch), rows(rows), block_rows(std::max<int64_t>(block_rows, 1)) {}
  int64_t per_weights() const { return (rows + block_rows - 1) / block_rows; }
  int64_t count() const { return weight_batch * per_weights(); }
  int64_t weights(int64_t block) const { return block / per_weights(); }
  int64_t first(int64_t block) const { return block % per_weights() * block_rows; }
  int64_t size(int64_t block) const { return std::min(block_rows, rows - first(block)); }
  int64_t largest() const { return std::min(block_rows, rows); }
};

// Rows of a block where each block sums its own gradients of the weights. So that results do not depend on the number
// of threads, this does not, either.
inline int64_t rows_for_gradient(int64_t rows, int64_t D, int64_t H) {
  const bool large = 3 * H * (D + H) > 1 << 18;  // beyond the second-level cache, read once for many rows
  const int64_t most = std::min(std::max<int64_t>(large ? 32 : 8, (rows + 15) / 16), kMaxBlockRows);
  const int64_t count = std::max<int64_t>((rows + most - 1) / most, 1);
  return (rows + count * 8 - 1) / (count * 8) * 8;
}

// The axes of a call's operands.
struct Axes {
  int64_t steps, weight_batch, rows, D, H;

  double flops() const { return 6.0 * steps * weight_batch * rows * H * (D + H); }
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
        threads(flops < kMinParallelFlops ? 1 : std::max<int64_t>(1, pool.num_threads())) {
    if (most > 0) threads = std::min(threads, most);
  }

  void each(int64_t tasks, const std::function<void(int64_t)>& task) const {
    parallel_for(tasks, threads, schedule, task);
  }
};

// About how long a step of so many rows takes one thread, in ns (measured with AVX-512): activations, and a product
// that is bound by reading U or by arithmetic.
inline double step_time(int64_t rows, int64_t H) { return 1.5 * rows * H + H * H * std::max(0.1, 0.055 * rows); }

// Threads take blocks in turn. While the last blocks run, other threads may be idle: how many blocks they can help
// with.
inline int64_t helped(const Call& call, const RowBlocks& row_blocks) {
  const int64_t last = row_blocks.count() % call.threads;
  return std::min(last, call.threads - last);
}

// Rows of a block where any division gives the same results: the largest multiple of 8 that minimises the busiest
// thread's load. `may_share`: whether two threads can share a block.
inline int64_t balanced_rows(const Call& call, const Axes& axes, bool may_share) {
  constexpr double kHelpedShare =
      0.55;  // of the time of a block that two threads share, a barrier in each step included
  int64_t best = 8;
  double least_load = std::numeric_limits<double>::infinity();
  for (int64_t block_rows = std::clamp<int64_t>((axes.rows + 7) / 8 * 8, 8, kMaxBlockRows); block_rows >= 8;
       block_rows -= 8) {
    const RowBlocks row_blocks(axes.weight_batch, axes.rows, block_rows);
    const int64_t last = row_blocks.count() % call.threads;
    const bool shared =
        may_share && helped(call, row_blocks) == last && step_time(row_blocks.largest(), axes.H) > kMinSharedStepNs;
    const double rounds = row_blocks.count() / call.threads + (last == 0 ? 0.0 : shared ? kHelpedShare : 1.0);
    if (rounds * block_rows < least_load) {
      least_load = rounds * block_rows;
      best = block_rows;
    }
  }
  return best;
}

// All sets of weights, packed.
struct PackedWeightBatch {
  Memory memory;
  std::unique_ptr<PackedWeights[]> weights;
};

struct WeightOperands {
  const float *kernel = nullptr, *bias = nullptr, *recurrent = nullptr,
              *recurrent_bias = nullptr;  // null where not given
};

inline PackedWeightBatch pack(const Call& call, const Axes& axes, const WeightOperands& from, bool reset_after,
                              bool transposed) {
  const int64_t D = axes.D, H = axes.H;
  const bool few_uses = axes.steps * axes.rows <= kFewUses;
  const Weights like = {
      .in_features = D, .features = H, .reset_after = reset_after, .transposed = transposed, .few_uses = few_uses};
  const int64_t size = (call.kernels.packed_size(like) + 15) / 16 * 16;
  PackedWeightBatch packed = {allocate(size * axes.weight_batch), std::make_unique<PackedWeights[]>(axes.weight_batch)};
  if (!packed.memory) return packed;
  const bool alone = few_uses || (3 * H * (D + H) < 1 << 16 && call.flops < kMinHelpedFlops);
  const int64_t members = alone ? 1 : (call.threads + axes.weight_batch - 1) / axes.weight_batch;
  call.each(axes.weight_batch * members, [&](int64_t i) {
    const int64_t g = i / members;
    Weights weights = like;
    weights.kernel = from.kernel ? from.kernel + g * D * 3 * H : nullptr;
    weights.bias = from.bias ? from.bias + g * 3 * H : nullptr;
    weights.recurrent = from.recurrent + g * H * 3 * H;
    weights.recurrent_bias = from.recurrent_bias ? from.recurrent_bias + g * H : nullptr;
    const WorkShare share = {.member = i % members, .members = members};
    const PackedWeights where = call.kernels.pack(weights, packed.memory.get() + g * size, share);
    if (share.member == 0) packed.weights[g] = where;
  });
  return packed;
}

inline ffi::Error out_of_memory() { return ffi::Error(ffi::ErrorCode::kResourceExhausted, "gru_jax: out of memory"); }

// Runs a kernel on every block of rows, with `size` floats of scratch memory.
inline ffi::Error for_each_block(const Call& call, const RowBlocks& row_blocks, int64_t size,
                                 const std::function<void(int64_t, float*)>& kernel) {
  std::atomic<bool> failed{false};
  call.each(row_blocks.count(), [&](int64_t block) {
    Memory memory = allocate(size);
    if (memory) {
      kernel(block, memory.get());
    } else {
      failed = true;
    }
  });
  return failed ? out_of_memory() : ffi::Error::Success();
}

// Runs a pass over every block of rows.
template <class Job>
ffi::Error run_pass(const Call& call, const RowBlocks& row_blocks, const Pass<Job>& pass, const Sizes& largest,
                    const std::function<Job(int64_t)>& job_of) {
  const auto aligned = [](int64_t size) { return (size + 15) / 16 * 16; };
  const int64_t chunk = aligned(pass.chunk_size(largest)), alone = row_blocks.count() - helped(call, row_blocks);
  const int64_t slots = alone < row_blocks.count() ? kInFlight : 1;
  const int64_t size = slots * chunk + aligned(pass.carry_size(largest));
  return for_each_block(call, row_blocks, size, [&](int64_t block, float* memory) {
    const Job job = job_of(block);
    const auto slot = [&](int64_t i) { return memory + i % slots * chunk; };
    const int64_t count = call.kernels.chunks(job.in.sizes);
    const Stages stages = {
        .count = count,
        .duration = call.flops / kFlopsPerNs / row_blocks.count(),
        .step = step_time(job.in.sizes.rows, job.in.sizes.features),
        .prologue = [&](int64_t i, const WorkShare& share) { pass.prologue(job, i, slot(i), share); },
        .recur = [&](int64_t i,
                     WorkShare& share) { return pass.recur(job, i, slot(i), memory + slots * chunk, share); },
        .epilogue = [&](int64_t i, const WorkShare& share) { pass.epilogue(job, i, slot(i), share); }};
    run_stages(stages, block >= alone && (count > 1 || call.flops >= kMinHelpedFlops), call.schedule);
  });
}

}  // namespace gru_jax

#endif
