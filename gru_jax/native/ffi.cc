// The handlers that XLA calls: they check shapes, share rows out among threads, and turn exceptions into errors.
//
// Operands, float32 where not said otherwise; T steps, G groups of weights, B rows (sequences) of each:
//   xs (T, G or 1, B, D), h_0 (G, B, H), kernel (G, D, 3H), bias (G, 3H), recurrent kernel (G, H, 3H), recurrent bias (G, H),
//   drop (G, B, H), mask and resets (T, G, B) bool, reset_state (G, B, H). From the biases on all but U are optional: empty where
//   not given; no reset_state is zero.
#include <algorithm>
#include <exception>
#include <initializer_list>
#include <new>
#include <string>
#include <string_view>

#include "call.h"
#include "shapes.h"
#include "targets.h"
#include "xla/ffi/api/ffi.h"

namespace gru_jax {
namespace {

using F32 = ffi::Buffer<ffi::F32>;
using Bool = ffi::Buffer<ffi::PRED>;
using Result = ffi::ResultBuffer<ffi::F32>;

void prefer_large_pages(Result& result) { gru_jax::prefer_large_pages(result->untyped_data(), result->size_bytes()); }

template <class Buffer>
auto given(const Buffer& buffer) -> decltype(buffer.typed_data()) {
  return buffer.element_count() ? buffer.typed_data() : nullptr;
}

const uint8_t* bytes(const Bool& flags) { return reinterpret_cast<const uint8_t*>(given(flags)); }

// The operands that the states and their gradient share.
struct Operands {
  F32 xs, h_0, kernel, bias, recurrent, recurrent_bias, drop;
  Bool mask, resets;
  F32 reset_state;
  bool reset_after, reverse;
  Axes axes = {};
  Candidate candidate = Candidate::kTanh;
  Memory zero = nullptr;  // (H), where there is no reset_state

  // Reads the name of the candidate's activation; false if there is none of that name.
  bool has_candidate(std::string_view name) {
    candidate = name == "tanh" ? Candidate::kTanh : Candidate::kSigmoid;
    return name == "tanh" || name == "sigmoid";
  }

  // False if there is no memory.
  bool provide_zero() {
    zero = allocate(axes.H);
    if (zero) std::fill_n(zero.get(), axes.H, 0.0f);
    return zero != nullptr;
  }

  WeightOperands weights() const {
    return {.kernel = kernel.typed_data(),
            .bias = given(bias),
            .recurrent = recurrent.typed_data(),
            .recurrent_bias = given(recurrent_bias)};
  }

  // Of a part of so many rows.
  Sizes sizes(int64_t rows) const {
    return {.steps = axes.steps,
            .rows = rows,
            .in_features = axes.D,
            .features = axes.H,
            .reset_after = reset_after,
            .reverse = reverse};
  }

  Recurrence part(const Parts& parts, int64_t i, const PackedGroups& packed) const {
    const int64_t g = parts.group(i), first = parts.first(i), row = g * axes.rows + first;
    const int64_t x_groups = xs.dimensions()[1], all_rows = axes.groups * axes.rows;
    const int64_t x_row = (x_groups == 1 ? 0 : g * axes.rows) + first;
    return {.sizes = sizes(parts.size(i)),
            .candidate = candidate,
            .xs = {.data = xs.typed_data() + x_row * axes.D, .step = x_groups * axes.rows * axes.D},
            .h_0 = h_0.typed_data() + row * axes.H,
            .reset_state = given(reset_state) ? reset_state.typed_data() + row * axes.H : zero.get(),
            .reset_row = given(reset_state) ? axes.H : 0,
            .drop = given(drop) ? drop.typed_data() + row * axes.H : nullptr,
            .mask = {.data = bytes(mask) ? bytes(mask) + row : nullptr, .step = all_rows},
            .resets = {.data = bytes(resets) ? bytes(resets) + row : nullptr, .step = all_rows},
            .weights = packed.groups[g]};
  }
};

ffi::Error unknown_candidate(std::string_view name) {
  return ffi::Error::InvalidArgument("gru_jax: candidate must be tanh or sigmoid, got " + std::string(name));
}

// Reads off the axes, and begins to check shapes.
Shapes check(Operands& o) {
  Shapes shapes;
  if (!shapes.has_axes("xs", o.xs, 4).has_axes("h_0", o.h_0, 3).fit()) return shapes;
  const auto x = o.xs.dimensions(), h = o.h_0.dimensions();
  o.axes = {.steps = x[0], .groups = h[0], .rows = h[1], .D = x[3], .H = h[2]};
  const auto [T, G, B, D, H] = o.axes;
  shapes.has("xs", o.xs, {T, x[1] == 1 ? 1 : G, B, D})
      .has("kernel", o.kernel, {G, D, 3 * H})
      .may_have("bias", o.bias, {G, 3 * H})
      .has("recurrent kernel", o.recurrent, {G, H, 3 * H})
      .may_have("recurrent bias", o.recurrent_bias, {G, H})
      .may_have("drop", o.drop, {G, B, H})
      .may_have("mask", o.mask, {T, G, B})
      .may_have("resets", o.resets, {T, G, B})
      .may_have("reset_state", o.reset_state, {G, B, H});
  return shapes;
}

// Preactivations: all that the cell has, or none.
template <class Buffer>
void check_kept(Shapes& shapes, const Operands& o, const Buffer& r, const Buffer& z, const Buffer& n, const Buffer& q) {
  const auto [T, G, B, D, H] = o.axes;
  const bool kept = r.element_count() > 0;
  shapes.has_if(kept, "kept r", r, {T, G, B, H}).has_if(kept, "kept z", z, {T, G, B, H}).has_if(kept, "kept n", n, {T, G, B, H});
  shapes.has_if(kept && o.reset_after, "kept q", q, {T, G, B, H});
}

// Whether to write what is kept past the caches. So much of it would leave them before it is read, and push out everything else;
// a gradient takes up to an eighth less. Not so where the system has yet to provide the memory: it fills it with zeros, in the
// caches, and then the whole took 4 % more (measured).
bool go_past_caches(std::initializer_list<Result*> kept) {
  constexpr size_t kLarge = 1 << 21;
  size_t bytes = 0;
  for (Result* array : kept) bytes += (*array)->size_bytes();
  return bytes >= kLarge && std::all_of(kept.begin(), kept.end(), [](Result* array) {
    return (*array)->size_bytes() == 0 || is_resident((*array)->untyped_data(), (*array)->size_bytes());
  });
}

ffi::Error states(ffi::ThreadPool pool, F32 xs, F32 h_0, F32 kernel, F32 bias, F32 recurrent, F32 recurrent_bias, F32 drop,
                  Bool mask, Bool resets, F32 reset_state, Result hs, Result kept_r, Result kept_z, Result kept_n, Result kept_q,
                  bool reset_after, bool reverse, std::string_view candidate, int64_t threads) {
  Operands o = {.xs = xs,
                .h_0 = h_0,
                .kernel = kernel,
                .bias = bias,
                .recurrent = recurrent,
                .recurrent_bias = recurrent_bias,
                .drop = drop,
                .mask = mask,
                .resets = resets,
                .reset_state = reset_state,
                .reset_after = reset_after,
                .reverse = reverse};
  if (!o.has_candidate(candidate)) return unknown_candidate(candidate);
  Shapes shapes = check(o);
  const Axes& axes = o.axes;
  shapes.has("hs", *hs, {axes.steps, axes.groups, axes.rows, axes.H});
  check_kept(shapes, o, *kept_r, *kept_z, *kept_n, *kept_q);
  if (!shapes.fit()) return shapes.error();
  if (!o.provide_zero()) return out_of_memory();
  const Call call(pool, threads, axes.flops());
  const PackedGroups packed = pack(call, axes, o.weights(), reset_after, false);
  if (!packed.memory) return out_of_memory();
  const Parts parts(axes.groups, axes.rows, rows_for(call, axes, true));
  const Sizes largest = o.sizes(std::min(parts.each, axes.rows));
  for (Result* result : {&hs, &kept_r, &kept_z, &kept_n, &kept_q}) prefer_large_pages(*result);
  const bool past_caches = go_past_caches({&kept_r, &kept_z, &kept_n, &kept_q});
  return each_pass<States>(call, parts, call.kernels.states, largest, [&](int64_t i) -> States {
    const int64_t first = (parts.group(i) * axes.rows + parts.first(i)) * axes.H, step = axes.groups * axes.rows * axes.H;
    const auto series = [&](Result& to) -> MutableSeries {
      return {.data = given(*to) ? to->typed_data() + first : nullptr, .step = step};
    };
    return {.in = o.part(parts, i, packed),
            .hs = series(hs),
            .kept = {series(kept_r), series(kept_z), series(kept_n), series(kept_q)},
            .past_caches = past_caches};
  });
}

// Sums the parts' gradients of the weights, in the order of the parts.
void reduce(const Call& call, const Axes& axes, const Parts& parts, const float* partial, Result& d_kernel, Result& d_bias,
            Result& d_recurrent, Result& d_recurrent_bias, float* unused) {
  const int64_t D = axes.D, H = axes.H, size = call.kernels.gradient_size(D, H);
  const int64_t rows = D + H + 2, slices = std::min<int64_t>(rows, 2 * call.threads), count = parts.per_group();
  const auto group = [](Result& result, int64_t g, int64_t size, float* otherwise) {
    return result->element_count() ? result->typed_data() + g * size : otherwise;
  };
  call.each(axes.groups * slices, [&](int64_t i) {
    const int64_t g = i / slices, slice = i % slices;
    const WeightGradients to = {.kernel = d_kernel->typed_data() + g * D * 3 * H,
                                .recurrent = d_recurrent->typed_data() + g * H * 3 * H,
                                .bias = group(d_bias, g, 3 * H, unused),
                                .recurrent_bias = group(d_recurrent_bias, g, H, unused)};
    call.kernels.reduce(partial + g * count * size, count, D, H, slice * rows / slices, (slice + 1) * rows / slices, to);
  });
}

ffi::Error gradient(ffi::ThreadPool pool, F32 xs, F32 h_0, F32 kernel, F32 bias, F32 recurrent, F32 recurrent_bias, F32 drop,
                    Bool mask, Bool resets, F32 reset_state, F32 hs, F32 ct, F32 kept_r, F32 kept_z, F32 kept_n, F32 kept_q, Result d_xs,
                    Result d_h_0, Result d_reset_state, Result d_kernel, Result d_bias, Result d_recurrent, Result d_recurrent_bias,
                    bool reset_after, bool reverse, std::string_view candidate, int64_t threads) {
  Operands o = {.xs = xs,
                .h_0 = h_0,
                .kernel = kernel,
                .bias = bias,
                .recurrent = recurrent,
                .recurrent_bias = recurrent_bias,
                .drop = drop,
                .mask = mask,
                .resets = resets,
                .reset_state = reset_state,
                .reset_after = reset_after,
                .reverse = reverse};
  if (!o.has_candidate(candidate)) return unknown_candidate(candidate);
  Shapes shapes = check(o);
  const Axes& axes = o.axes;
  const int64_t T = axes.steps, G = axes.groups, B = axes.rows, D = axes.D, H = axes.H, all_rows = G * B;
  const bool weights_wanted = d_kernel->element_count() > 0;
  shapes.has("hs", hs, {T, G, B, H}).has("ct", ct, {T, G, B, H}).may_have("d_xs", *d_xs, {T, G, B, D}).has("d_h_0", *d_h_0, {G, B, H});
  shapes.may_have("d_reset_state", *d_reset_state, {G, B, H});
  shapes.has_if(weights_wanted, "d_kernel", *d_kernel, {G, D, 3 * H})
      .has_if(weights_wanted, "d_recurrent_kernel", *d_recurrent, {G, H, 3 * H})
      .has_if(weights_wanted && d_bias->element_count(), "d_bias", *d_bias, {G, 3 * H})
      .has_if(weights_wanted && d_recurrent_bias->element_count(), "d_recurrent_bias", *d_recurrent_bias, {G, H});
  check_kept(shapes, o, kept_r, kept_z, kept_n, kept_q);
  if (!shapes.fit()) return shapes.error();
  if (!o.provide_zero()) return out_of_memory();
  const Call call(pool, threads, 3 * axes.flops());
  const PackedGroups packed = pack(call, axes, o.weights(), reset_after, true);
  const Parts parts(axes.groups, axes.rows, rows_for_gradient(axes.rows, D, H));
  const int64_t size = call.kernels.gradient_size(D, H);
  const Memory partial = allocate(weights_wanted ? parts.count() * size + 3 * H : 0);
  if (!packed.memory || !partial) return out_of_memory();
  prefer_large_pages(d_xs);
  const Sizes largest = o.sizes(std::min(parts.each, axes.rows));
  const ffi::Error error = each_pass<Gradient>(call, parts, call.kernels.gradient, largest, [&](int64_t i) -> Gradient {
    const int64_t row = parts.group(i) * axes.rows + parts.first(i);
    float* d_x = d_xs->element_count() ? d_xs->typed_data() + row * D : nullptr;
    const auto series = [&](const F32& of) -> Series {
      return {.data = given(of) ? of.typed_data() + row * H : nullptr, .step = all_rows * H};
    };
    return {.in = o.part(parts, i, packed),
            .hs = series(hs),
            .ct = series(ct),
            .kept = {series(kept_r), series(kept_z), series(kept_n), series(kept_q)},
            .d_xs = {.data = d_x, .step = all_rows * D},
            .d_h_0 = d_h_0->typed_data() + row * H,
            .d_reset_state = d_reset_state->element_count() ? d_reset_state->typed_data() + row * H : nullptr,
            .d_weights = weights_wanted ? partial.get() + i * size : nullptr};
  });
  if (error.failure() || !weights_wanted) return error;
  reduce(call, axes, parts, partial.get(), d_kernel, d_bias, d_recurrent, d_recurrent_bias,
         partial.get() + parts.count() * size);
  return ffi::Error::Success();
}

// source (T, G, B, H); each coefficient (T, G, period, H), mask and resets (T, G, period), where row i of B reads row i % period.
ffi::Error linear(ffi::ThreadPool pool, F32 z, F32 r, F32 c_r, F32 c_z, F32 a_n, F32 recurrent, F32 drop, F32 source,
                  Bool mask, Bool resets, Result ys, bool reset_after, bool reverse, bool transposed, int64_t threads) {
  Shapes shapes;
  if (!shapes.has_axes("source", source, 4).has_axes("z", z, 4).fit()) return shapes.error();
  const auto shape = source.dimensions();
  const Axes axes = {.steps = shape[0], .groups = shape[1], .rows = shape[2], .D = 0, .H = shape[3]};
  const int64_t T = axes.steps, G = axes.groups, B = axes.rows, H = axes.H, period = z.dimensions()[2];
  for (const F32& c : {z, r, c_r, c_z, a_n}) shapes.has("a coefficient", c, {T, G, period, H});
  shapes.has("recurrent kernel", recurrent, {G, H, 3 * H}).may_have("drop", drop, {G, B, H}).has("ys", *ys, {T, G, B, H});
  shapes.may_have("mask", mask, {T, G, period}).may_have("resets", resets, {T, G, period});
  if (!shapes.fit()) return shapes.error();
  const Call call(pool, threads, axes.flops());
  const PackedGroups packed = pack(call, axes, {.recurrent = recurrent.typed_data()}, reset_after, true);
  if (!packed.memory) return out_of_memory();
  const Parts parts(axes.groups, axes.rows, rows_for(call, axes, false));
  const auto sizes_of = [&](int64_t rows) -> Sizes {
    return {.steps = T, .rows = rows, .in_features = 0, .features = H, .reset_after = reset_after, .reverse = reverse};
  };
  const Sizes largest = sizes_of(std::min(parts.each, B));
  return each_part(call, parts, call.kernels.linear_scratch(largest), [&](int64_t i, float* scratch) {
    const int64_t g = parts.group(i), first = parts.first(i), row = g * B + first, step = G * B * H;
    const auto flags = [&](const Bool& of) -> Flags {
      return {.data = bytes(of) ? bytes(of) + g * period : nullptr, .step = G * period};
    };
    const auto coefficient = [&](const F32& of) -> Series {
      return {.data = of.typed_data() + g * period * H, .step = G * period * H};
    };
    const Linear job = {
        .sizes = sizes_of(parts.size(i)),
        .coefficients = {coefficient(z), coefficient(r), coefficient(c_r), coefficient(c_z), coefficient(a_n)},
        .mask = flags(mask),
        .resets = flags(resets),
        .first_row = first,
        .period = period,
        .drop = given(drop) ? drop.typed_data() + row * H : nullptr,
        .source = {.data = source.typed_data() + row * H, .step = step},
        .weights = packed.groups[g],
        .ys = {.data = ys->typed_data() + row * H, .step = step}};
    call.kernels.linear(job, transposed, scratch);
  });
}

XLA_FFI_DEFINE_HANDLER(states_handler, states,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32>()   // xs
                                  .Arg<F32>()   // h_0
                                  .Arg<F32>()   // kernel
                                  .Arg<F32>()   // bias
                                  .Arg<F32>()   // recurrent kernel
                                  .Arg<F32>()   // recurrent bias
                                  .Arg<F32>()   // drop
                                  .Arg<Bool>()  // mask
                                  .Arg<Bool>()  // resets
                                  .Arg<F32>()   // reset_state
                                  .Ret<F32>()   // hs
                                  .Ret<F32>()   // kept: preactivations of r,
                                  .Ret<F32>()   // z,
                                  .Ret<F32>()   // n,
                                  .Ret<F32>()   // and q; empty where not
                                  .Attr<bool>("reset_after")
                                  .Attr<bool>("reverse")
                                  .Attr<std::string_view>("candidate")
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER(gradient_handler, gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32>()   // xs
                                  .Arg<F32>()   // h_0
                                  .Arg<F32>()   // kernel
                                  .Arg<F32>()   // bias
                                  .Arg<F32>()   // recurrent kernel
                                  .Arg<F32>()   // recurrent bias
                                  .Arg<F32>()   // drop
                                  .Arg<Bool>()  // mask
                                  .Arg<Bool>()  // resets
                                  .Arg<F32>()   // reset_state
                                  .Arg<F32>()   // hs
                                  .Arg<F32>()   // ct
                                  .Arg<F32>()   // kept: preactivations of r,
                                  .Arg<F32>()   // z,
                                  .Arg<F32>()   // n,
                                  .Arg<F32>()   // and q; empty where not
                                  .Ret<F32>()   // d_xs
                                  .Ret<F32>()   // d_h_0
                                  .Ret<F32>()   // d_reset_state; empty where not asked for
                                  .Ret<F32>()   // d_kernel
                                  .Ret<F32>()   // d_bias
                                  .Ret<F32>()   // d_recurrent_kernel
                                  .Ret<F32>()   // d_recurrent_bias
                                  .Attr<bool>("reset_after")
                                  .Attr<bool>("reverse")
                                  .Attr<std::string_view>("candidate")
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER(linear_handler, linear,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<F32>()  // z
                                  .Arg<F32>()  // r
                                  .Arg<F32>()  // c_r
                                  .Arg<F32>()  // c_z
                                  .Arg<F32>()  // a_n
                                  .Arg<F32>()  // recurrent kernel
                                  .Arg<F32>()  // drop
                                  .Arg<F32>()  // source
                                  .Arg<Bool>()  // mask
                                  .Arg<Bool>()  // resets
                                  .Ret<F32>()  // ys
                                  .Attr<bool>("reset_after")
                                  .Attr<bool>("reverse")
                                  .Attr<bool>("transposed")
                                  .Attr<int64_t>("threads"));

// A handler that throws nothing: XLA calls it as a function of C.
template <XLA_FFI_Handler* handler>
XLA_FFI_Error* guarded(XLA_FFI_CallFrame* frame) noexcept {
  const auto error = [frame](XLA_FFI_Error_Code code, const char* message) {
    XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, nullptr, message, code};
    return frame->api->XLA_FFI_Error_Create(&args);
  };
  try {
    return handler(frame);
  } catch (const std::bad_alloc&) {
    return error(XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "gru_jax: out of memory");
  } catch (const std::exception& exception) {
    return error(XLA_FFI_Error_Code_INTERNAL, exception.what());
  } catch (...) {
    return error(XLA_FFI_Error_Code_INTERNAL, "gru_jax: an unknown exception");
  }
}

constexpr Target kTargets[] = {{"gru_jax_states", guarded<states_handler>},
                               {"gru_jax_gradient", guarded<gradient_handler>},
                               {"gru_jax_linear", guarded<linear_handler>}};

}  // namespace

std::span<const Target> targets() { return kTargets; }

}  // namespace gru_jax
