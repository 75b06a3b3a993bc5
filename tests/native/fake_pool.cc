// Threads, stages and handlers of the native code on pools that misbehave, and where memory runs out.
// test_native_pool.py compiles this with the sources of the extension, except the kernels: here are others, which
// count. The argument names a scenario.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "isa.h"
#include "parallel.h"
#include "stages.h"
#include "targets.h"

// --- Memory that runs out
// ---------------------------------------------------------------------------------------------------------

std::atomic<int64_t> allocations_left{-1};  // so many succeed, and the next one fails; negative: all succeed
std::atomic<bool> ran_out{false};

void* operator new(size_t size) {
  if (allocations_left.load() >= 0 && allocations_left.fetch_sub(1) == 0) {
    ran_out = true;
    throw std::bad_alloc();
  }
  if (void* memory = std::malloc(size ? size : 1)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace gru_jax {
namespace {

void check(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what.c_str());
  std::exit(1);
}

// --- Pools
// ------------------------------------------------------------------------------------------------------------------------

using Closure = std::function<void()>;

// Threads that run closures in turn, as a pool should.
class Threads {
 public:
  explicit Threads(int count) {
    for (int i = 0; i < count; ++i) threads_.emplace_back([this] { work(); });
  }

  ~Threads() {
    ended_ = true;
    for (std::thread& thread : threads_) thread.join();
  }

  void schedule(Closure closure) {
    const std::lock_guard lock(mutex_);
    closures_.push_back(std::move(closure));
  }

 private:
  void work() {
    while (!ended_) {
      Closure closure;
      {
        const std::lock_guard lock(mutex_);
        if (!closures_.empty()) {
          closure = std::move(closures_.front());
          closures_.pop_front();
        }
      }
      closure ? closure() : std::this_thread::yield();
    }
  }

  std::mutex mutex_;
  std::deque<Closure> closures_;
  std::atomic<bool> ended_{false};
  std::vector<std::thread> threads_;
};

Threads* threads = nullptr;

// Closures that wait in pools that run them later.
std::mutex mutex;
std::deque<Closure> waiting;

Closure next_waiting() {
  const std::lock_guard lock(mutex);
  if (waiting.empty()) return nullptr;
  Closure closure = std::move(waiting.front());
  waiting.pop_front();
  return closure;
}

void wait_in_line(Closure closure) {
  const std::lock_guard lock(mutex);
  waiting.push_back(std::move(closure));
}

// Runs all waiting closures, the first on this thread, the others on another one.
void drain() {
  const auto rest = [] {
    while (Closure closure = next_waiting()) closure();
  };
  if (Closure closure = next_waiting()) closure();
  std::thread(rest).join();
}

struct Pool {
  const char* name;
  bool throws;
  Schedule schedule;
};

int scheduled = 0;

const Pool kPools[] = {
    {"threads", false, [](Closure closure) { threads->schedule(std::move(closure)); }},
    {"inline", false, [](Closure closure) { closure(); }},
    {"inline_later", false,
     [](Closure closure) {
       // It may be what another caller waits for: two callers that run each other's closures do not come to their own
       // work.
       Closure other = next_waiting();
       wait_in_line(std::move(closure));
       if (other) other();
     }},
    {"never", false, wait_in_line},
    {"drops", false, [](Closure) {}},
    {"throws", true, [](Closure) { throw std::runtime_error("no thread"); }},
    {"throws_later", true,
     [](Closure closure) {
       if (scheduled++ % 2) throw std::runtime_error("no thread");
       threads->schedule(std::move(closure));
     }},
    {"throws_after", true,
     [](Closure closure) {
       threads->schedule(std::move(closure));
       throw std::runtime_error("no thread");
     }},
};

// --- What is run on them
// ----------------------------------------------------------------------------------------------------------

constexpr int64_t kTasks = 50, kChunks = 9, kItems = 16;

// Checks that every task was done once. Throws what a task throws.
void run_tasks(const Schedule& schedule, int64_t failing) {
  std::vector<std::atomic<int>> done(kTasks);
  parallel_for(kTasks, 4, schedule, [&](int64_t i) {
    if (i == failing) throw std::runtime_error("a task");
    ++done[i];
  });
  for (const auto& count : done) check(count == 1, "a task was not done once");
}

// Which thread is to fail in a chunk in the middle, and in which stage: 'p'rologue, 'r'ecur or 'e'pilogue.
struct Failing {
  char stage = 0;
  int64_t member = 0;
};

// Checks that every stage of every chunk was done once, whether threads shared it or not. `step` is the time of a step
// in ns, about.
void run_chunks(const Schedule& schedule, double step, Failing failing) {
  std::vector<std::atomic<int>> done(3 * kChunks * kItems);
  const auto stage = [&](char name, int64_t which, int64_t i, const WorkShare& share) {
    for (int64_t item = share.member; item < kItems; item += share.members)
      ++done[(which * kChunks + i) * kItems + item];
    if (name == failing.stage && share.member == failing.member && i == kChunks / 2)
      throw std::runtime_error("a stage");
  };
  const Stages stages = {.count = kChunks,
                         .duration = 2e5,
                         .step = step,
                         .prologue = [&](int64_t i, const WorkShare& share) { stage('p', 0, i, share); },
                         .recur =
                             [&](int64_t i, WorkShare& share) {
                               stage('r', 1, i, share);
                               return share.members == 1 || share.barrier(share);
                             },
                         .epilogue = [&](int64_t i, const WorkShare& share) { stage('e', 2, i, share); }};
  run_stages(stages, true, schedule);
  for (const auto& count : done) check(count == 1, "a stage was not done once");
}

template <class Action>
bool throws(Action action) {
  try {
    action();
  } catch (const std::exception&) {
    return true;
  }
  return false;
}

void on_pool(const Pool& pool) {
  int thrown = 0;
  for (int i = 0; i < 40; ++i) {
    scheduled = 0;
    check(throws([&] { run_tasks(pool.schedule, -1); }) == pool.throws, "tasks");
    check(throws([&] { run_tasks(pool.schedule, i); }), "a task that throws");
    drain();
    ++scheduled;
    // Two threads share long steps, and form a pipeline for short ones.
    thrown += throws([&] { run_chunks(pool.schedule, i % 2 ? 1e9 : 0, {}); });
    drain();
  }
  check(thrown == 0 || pool.throws, "stages");
}

// A stage of the caller or of its helper throws: neither waits for ever, nor returns before the other has left.
void stages_throw() {
  for (int i = 0; i < 30; ++i) {
    for (const char stage : {'p', 'r', 'e'}) {
      check(throws([&] { run_chunks(kPools[0].schedule, i % 2 ? 1e9 : 0, {stage, 0}); }), "a stage of the caller");
      throws([&] { run_chunks(kPools[0].schedule, 1e9, {stage, 1}); });  // if there is a helper
    }
  }
}

// Two callers whose pool makes each run what the other has scheduled.
void two_callers() {
  const auto call = [] {
    for (int i = 0; i < 30; ++i) {
      run_chunks(kPools[2].schedule, 1e9, {});
      run_tasks(kPools[2].schedule, -1);
    }
  };
  std::thread other(call);
  call();
  other.join();
  drain();
}

// Runs an action with its first allocation failing, then its second, and so on, until none fails. The action returns
// whether it was told of the failure.
void with_failing_allocations(const std::function<bool()>& action) {
  int64_t n = 0;
  do {
    ran_out = false;
    allocations_left = n++;
    const bool failed = action();
    allocations_left = -1;
    check(!failed || ran_out, "failed without a reason");
  } while (ran_out);
  check(n > 3, "nothing was allocated");
}

void tasks_without_memory() {
  with_failing_allocations([] { return throws([] { run_tasks(kPools[0].schedule, -1); }); });
  with_failing_allocations([] { return throws([] { run_chunks(kPools[0].schedule, 1e9, {}); }); });
}

// --- Handlers
// ---------------------------------------------------------------------------------------------------------------------

}  // namespace

// Kernels with chunks of one step, which add one to all states.
const Kernels& kernels() {
  static const Kernels counting = [] {
    Kernels table = {};
    table.name = "counting";
    table.packed_size = [](const Weights&) -> int64_t { return 16; };
    table.pack = [](const Weights&, float*, const WorkShare&) { return PackedWeights{}; };
    table.chunks = [](const Sizes& sizes) { return sizes.steps; };
    const auto size = [](const Sizes&) -> int64_t { return 16; };
    table.states = {size, size, [](const States&, int64_t, float*, const WorkShare&) {},
                    [](const States& job, int64_t t, float*, float*, WorkShare& share) {
                      const int64_t count = job.in.sizes.rows * job.in.sizes.features;
                      for (int64_t i = share.member; i < count; i += share.members) ++job.hs.data[t * job.hs.step + i];
                      return share.members == 1 || share.barrier(share);
                    },
                    [](const States&, int64_t, float*, const WorkShare&) {}};
    return table;
  }();
  return counting;
}

namespace {

const Pool* pool_of_xla = nullptr;
XLA_FFI_Error_Code last_code = XLA_FFI_Error_Code_OK;

// As much of XLA's side of a call as a handler needs.
XLA_FFI_Api fake_api() {
  XLA_FFI_Api api = {};
  api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
  api.XLA_FFI_Error_Create = [](XLA_FFI_Error_Create_Args* args) {
    last_code = args->errc;
    return reinterpret_cast<XLA_FFI_Error*>(&last_code);
  };
  api.XLA_FFI_ThreadPool_NumThreads = [](XLA_FFI_ThreadPool_NumThreads_Args* args) -> XLA_FFI_Error* {
    *args->num_threads = 2;
    return nullptr;
  };
  api.XLA_FFI_ThreadPool_Schedule = [](XLA_FFI_ThreadPool_Schedule_Args* args) -> XLA_FFI_Error* {
    pool_of_xla->schedule([task = args->task, data = args->data] { task(data); });
    return nullptr;
  };
  return api;
}

// A call of the states' handler: so many steps, one set of weights, so many rows, and as many features of the input as
// of the state.
class StatesCall {
 public:
  explicit StatesCall(int64_t steps = 64, int64_t rows = 8, int64_t features = 32) : count_(steps * rows * features) {
    constexpr auto f32 = XLA_FFI_DataType_F32, pred = XLA_FFI_DataType_PRED;
    const std::vector<int64_t> states = {steps, 1, rows, features}, weights = {1, features, 3 * features}, none = {0};
    args_ = {buffer(states, f32),  buffer({1, rows, features}, f32),
             buffer(weights, f32), buffer(none, f32),
             buffer(weights, f32), buffer(none, f32),
             buffer(none, f32),    buffer(none, pred),
             buffer(none, pred),   buffer(none, f32)};
    rets_ = {buffer(states, f32), buffer(none, f32), buffer(none, f32), buffer(none, f32), buffer(none, f32)};
  }

  XLA_FFI_Error* call() {
    static const XLA_FFI_Api api = fake_api();
    static uint8_t no = 0;
    static int64_t most = 0;
    XLA_FFI_Scalar flag = {XLA_FFI_DataType_PRED, &no}, number = {XLA_FFI_DataType_S64, &most};
    XLA_FFI_ByteSpan candidate = {"tanh", 4};
    XLA_FFI_ByteSpan names[] = {{"candidate", 9}, {"reset_after", 11}, {"reverse", 7}, {"threads", 7}};
    XLA_FFI_ByteSpan* name_of[] = {&names[0], &names[1], &names[2], &names[3]};
    void* values[] = {&candidate, &flag, &flag, &number};
    constexpr auto scalar = XLA_FFI_AttrType_SCALAR;
    XLA_FFI_AttrType kinds[] = {XLA_FFI_AttrType_STRING, scalar, scalar, scalar};
    XLA_FFI_ArgType arg_kinds[16];
    XLA_FFI_RetType ret_kinds[16];
    void *args[16], *rets[16];
    for (size_t i = 0; i < args_.size(); ++i) args[i] = &args_[i], arg_kinds[i] = XLA_FFI_ArgType_BUFFER;
    for (size_t i = 0; i < rets_.size(); ++i) rets[i] = &rets_[i], ret_kinds[i] = XLA_FFI_RetType_BUFFER;
    XLA_FFI_CallFrame frame = {};
    frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
    frame.api = &api;
    frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
    frame.args = {.struct_size = XLA_FFI_Args_STRUCT_SIZE,
                  .extension_start = nullptr,
                  .size = static_cast<int64_t>(args_.size()),
                  .types = arg_kinds,
                  .args = args};
    frame.rets = {.struct_size = XLA_FFI_Rets_STRUCT_SIZE,
                  .extension_start = nullptr,
                  .size = static_cast<int64_t>(rets_.size()),
                  .types = ret_kinds,
                  .rets = rets};
    frame.attrs = {.struct_size = XLA_FFI_Attrs_STRUCT_SIZE,
                   .extension_start = nullptr,
                   .size = 4,
                   .types = kinds,
                   .names = name_of,
                   .attrs = values};
    std::fill(hs(), hs() + count_, 0.0f);
    return targets()[0].handler(&frame);
  }

  bool is_right() {
    return std::all_of(hs(), hs() + count_, [](float x) { return x == 1; });
  }

 private:
  float* hs() { return static_cast<float*>(rets_[0].data); }

  XLA_FFI_Buffer buffer(std::vector<int64_t> shape, XLA_FFI_DataType type) {
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    data_.emplace_back(count + 1);
    shapes_.push_back(std::move(shape));
    return {.struct_size = XLA_FFI_Buffer_STRUCT_SIZE,
            .extension_start = nullptr,
            .dtype = type,
            .data = data_.back().data(),
            .rank = static_cast<int64_t>(shapes_.back().size()),
            .dims = shapes_.back().data()};
  }

  int64_t count_;
  std::deque<std::vector<float>> data_;
  std::deque<std::vector<int64_t>> shapes_;
  std::vector<XLA_FFI_Buffer> args_, rets_;
};

void handlers_on_every_pool() {
  StatesCall states;
  for (const Pool& pool : kPools) {
    pool_of_xla = &pool;
    bool failed = false;
    for (int i = 0; i < 150; ++i) {
      if (states.call()) {
        failed = true;
        check(pool.throws && last_code == XLA_FFI_Error_Code_INTERNAL, std::string("an error with ") + pool.name);
      } else {
        check(states.is_right(), std::string("states with ") + pool.name);
      }
      drain();
    }
    check(failed == pool.throws, std::string("no error with ") + pool.name);
  }
}

void handlers_without_memory() {
  StatesCall states;
  pool_of_xla = &kPools[0];
  with_failing_allocations([&] {
    if (!states.call()) return check(states.is_right(), "states"), false;
    check(last_code == XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "another error than of memory");
    return true;
  });
}

// A step of one sequence is over before a helper would begin, and does not ask for one; longer calls do.
void short_calls_need_no_helper() {
  static int asked = 0;
  static const Pool counting = {"counting", false, [](Closure closure) { ++asked, closure(); }};
  pool_of_xla = &counting;
  for (int64_t features : {32, 64, 128, 256, 512}) {
    StatesCall states(1, 1, features);
    check(!states.call() && states.is_right() && asked == 0, "a step of " + std::to_string(features) + " features");
  }
  StatesCall states;
  check(!states.call() && states.is_right() && asked > 0, "many steps");
}

}  // namespace
}  // namespace gru_jax

int main(int, char** arguments) {
  using namespace gru_jax;
  const std::string scenario = arguments[1];
  Threads own(3);
  threads = &own;
  for (const Pool& pool : kPools) {
    if (scenario == pool.name) return on_pool(pool), 0;
  }
  if (scenario == "stages_throw") return stages_throw(), 0;
  if (scenario == "two_callers") return two_callers(), 0;
  if (scenario == "tasks_without_memory") return tasks_without_memory(), 0;
  if (scenario == "handlers_on_every_pool") return handlers_on_every_pool(), 0;
  if (scenario == "handlers_without_memory") return handlers_without_memory(), 0;
  if (scenario == "short_calls_need_no_helper") return short_calls_need_no_helper(), 0;
  check(false, "no such scenario: " + scenario);
}
