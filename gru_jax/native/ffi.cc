// The handlers that XLA calls: they check shapes, divide rows among threads, and turn exceptions into errors.
#include <algorithm>
#include <exception>
#include <initializer_list>
#include <new>
#include <string_view>

#include "operands.h"
#include "targets.h"

namespace gru_jax {
namespace {

// Whether saved preactivations should bypass the caches. Many of them would leave the caches before they are read, and
// evict everything else: without the caches a gradient takes up to an eighth less time. Not so where the system has yet
// to provide the memory: it fills that with zeros, in the caches, and a gradient takes 4 % more (measured).
bool should_stream(std::initializer_list<Result*> saved) {
  constexpr size_t kMinBytes = 1 << 21;
  size_t bytes = 0;
  for (Result* array : saved) bytes += (*array)->size_bytes();
  return bytes >= kMinBytes && std::all_of(saved.begin(), saved.end(), [](Result* array) {
           return (*array)->size_bytes() == 0 || is_resident((*array)->untyped_data(), (*array)->size_bytes());
         });
}

ffi::Error states(ffi::ThreadPool pool, F32 xs, F32 h_0, F32 kernel, F32 bias, F32 recurrent, F32 recurrent_bias,
                  F32 dropout_mask, Bool mask, Bool resets, F32 reset_state, Result hs, Result saved_r, Result saved_z,
                  Result saved_n, Result saved_q, bool reset_after, bool reverse, std::string_view candidate,
                  int64_t threads) {
  Operands o = {.xs = xs,
                .h_0 = h_0,
                .kernel = kernel,
                .bias = bias,
                .recurrent = recurrent,
                .recurrent_bias = recurrent_bias,
                .dropout_mask = dropout_mask,
                .mask = mask,
                .resets = resets,
                .reset_state = reset_state,
                .reset_after = reset_after,
                .reverse = reverse};
  if (!o.has_candidate(candidate)) return unknown_candidate(candidate);
  Shapes shapes = check_shapes(o);
  const Axes& axes = o.axes;
  shapes.has("hs", *hs, {axes.steps, axes.weight_batch, axes.rows, axes.H});
  check_saved(shapes, o, *saved_r, *saved_z, *saved_n, *saved_q);
  if (!shapes.fit()) return shapes.error();
  if (!o.provide_zero()) return out_of_memory();
  const Call call(pool, threads, axes.flops());
  const PackedWeightBatch packed = pack(call, axes, o.weights(), reset_after, false);
  if (!packed.memory) return out_of_memory();
  const RowBlocks row_blocks(axes.weight_batch, axes.rows, balanced_rows(call, axes, true));
  const Sizes largest = o.sizes(row_blocks.largest());
  for (Result* result : {&hs, &saved_r, &saved_z, &saved_n, &saved_q}) prefer_large_pages(*result);
  const bool stream_saved = should_stream({&saved_r, &saved_z, &saved_n, &saved_q});
  return run_pass<States>(call, row_blocks, call.kernels.states, largest, [&](int64_t i) -> States {
    const int64_t first = (row_blocks.weights(i) * axes.rows + row_blocks.first(i)) * axes.H,
                  step = axes.weight_batch * axes.rows * axes.H;
    const auto series = [&](Result& to) -> MutableSeries {
      return {.data = data_or_null(*to) ? to->typed_data() + first : nullptr, .step = step};
    };
    return {.in = o.block(row_blocks, i, packed),
            .hs = series(hs),
            .saved = {series(saved_r), series(saved_z), series(saved_n), series(saved_q)},
            .stream_saved = stream_saved};
  });
}

// Sums the gradients of the weights of all blocks of rows, in their order.
void reduce_weight_gradients(const Call& call, const Axes& axes, const RowBlocks& row_blocks, const float* partial,
                             Result& d_kernel, Result& d_bias, Result& d_recurrent, Result& d_recurrent_bias,
                             float* unused) {
  const int64_t D = axes.D, H = axes.H, size = call.kernels.weight_gradients_size(D, H);
  const int64_t rows = D + H + 2, slices = std::min<int64_t>(rows, 2 * call.threads), count = row_blocks.per_weights();
  const auto data_or = [](Result& result, int64_t g, int64_t size, float* otherwise) {
    return result->element_count() ? result->typed_data() + g * size : otherwise;
  };
  call.each(axes.weight_batch * slices, [&](int64_t i) {
    const int64_t g = i / slices, slice = i % slices;
    const WeightGradients to = {.kernel = d_kernel->typed_data() + g * D * 3 * H,
                                .recurrent = d_recurrent->typed_data() + g * H * 3 * H,
                                .bias = data_or(d_bias, g, 3 * H, unused),
                                .recurrent_bias = data_or(d_recurrent_bias, g, H, unused)};
    const int64_t first = slice * rows / slices, last = (slice + 1) * rows / slices;
    call.kernels.reduce_weight_gradients(partial + g * count * size, count, D, H, first, last, to);
  });
}

ffi::Error states_vjp(ffi::ThreadPool pool, F32 xs, F32 h_0, F32 kernel, F32 bias, F32 recurrent, F32 recurrent_bias,
                      F32 dropout_mask, Bool mask, Bool resets, F32 reset_state, F32 hs, F32 ct, F32 saved_r,
                      F32 saved_z, F32 saved_n, F32 saved_q, Result d_xs, Result d_h_0, Result d_reset_state,
                      Result d_kernel, Result d_bias, Result d_recurrent, Result d_recurrent_bias, bool reset_after,
                      bool reverse, std::string_view candidate, int64_t threads) {
  Operands o = {.xs = xs,
                .h_0 = h_0,
                .kernel = kernel,
                .bias = bias,
                .recurrent = recurrent,
                .recurrent_bias = recurrent_bias,
                .dropout_mask = dropout_mask,
                .mask = mask,
                .resets = resets,
                .reset_state = reset_state,
                .reset_after = reset_after,
                .reverse = reverse};
  if (!o.has_candidate(candidate)) return unknown_candidate(candidate);
  Shapes shapes = check_shapes(o);
  const Axes& axes = o.axes;
  const int64_t T = axes.steps, G = axes.weight_batch, B = axes.rows, D = axes.D, H = axes.H, all_rows = G * B;
  const bool needs_weights = d_kernel->element_count() > 0;
  shapes.has("hs", hs, {T, G, B, H})
      .has("ct", ct, {T, G, B, H})
      .may_have("d_xs", *d_xs, {T, G, B, D})
      .has("d_h_0", *d_h_0, {G, B, H});
  shapes.may_have("d_reset_state", *d_reset_state, {G, B, H});
  shapes.has_if(needs_weights, "d_kernel", *d_kernel, {G, D, 3 * H})
      .has_if(needs_weights, "d_recurrent_kernel", *d_recurrent, {G, H, 3 * H})
      .has_if(needs_weights && d_bias->element_count(), "d_bias", *d_bias, {G, 3 * H})
      .has_if(needs_weights && d_recurrent_bias->element_count(), "d_recurrent_bias", *d_recurrent_bias, {G, H});
  check_saved(shapes, o, saved_r, saved_z, saved_n, saved_q);
  if (!shapes.fit()) return shapes.error();
  if (!o.provide_zero()) return out_of_memory();
  const Call call(pool, threads, 3 * axes.flops());
  const PackedWeightBatch packed = pack(call, axes, o.weights(), reset_after, true);
  const RowBlocks row_blocks(axes.weight_batch, axes.rows, rows_for_gradient(axes.rows, D, H));
  const int64_t size = call.kernels.weight_gradients_size(D, H);
  const Memory partial = allocate(needs_weights ? row_blocks.count() * size + 3 * H : 0);
  if (!packed.memory || !partial) return out_of_memory();
  prefer_large_pages(d_xs);
  const Sizes largest = o.sizes(row_blocks.largest());
  const ffi::Error error =
      run_pass<StatesVjp>(call, row_blocks, call.kernels.states_vjp, largest, [&](int64_t i) -> StatesVjp {
        const int64_t row = row_blocks.weights(i) * axes.rows + row_blocks.first(i);
        float* d_x = d_xs->element_count() ? d_xs->typed_data() + row * D : nullptr;
        const auto series = [&](const F32& of) -> Series {
          return {.data = data_or_null(of) ? of.typed_data() + row * H : nullptr, .step = all_rows * H};
        };
        return {.in = o.block(row_blocks, i, packed),
                .hs = series(hs),
                .ct = series(ct),
                .saved = {series(saved_r), series(saved_z), series(saved_n), series(saved_q)},
                .d_xs = {.data = d_x, .step = all_rows * D},
                .d_h_0 = d_h_0->typed_data() + row * H,
                .d_reset_state = d_reset_state->element_count() ? d_reset_state->typed_data() + row * H : nullptr,
                .d_weights = needs_weights ? partial.get() + i * size : nullptr};
      });
  if (error.failure() || !needs_weights) return error;
  reduce_weight_gradients(call, axes, row_blocks, partial.get(), d_kernel, d_bias, d_recurrent, d_recurrent_bias,
                          partial.get() + row_blocks.count() * size);
  return ffi::Error::Success();
}

// source (T, G, B, H); each coefficient (T, G, period, H), mask and resets (T, G, period): row i of B reads row i %
// period of these.
ffi::Error linear_recurrence(ffi::ThreadPool pool, F32 z, F32 r, F32 c_r, F32 c_z, F32 a_n, F32 recurrent,
                             F32 dropout_mask, F32 source, Bool mask, Bool resets, Result ys, bool reset_after,
                             bool reverse, bool transposed, int64_t threads) {
  Shapes shapes;
  if (!shapes.has_axes("source", source, 4).has_axes("z", z, 4).fit()) return shapes.error();
  const auto shape = source.dimensions();
  const Axes axes = {.steps = shape[0], .weight_batch = shape[1], .rows = shape[2], .D = 0, .H = shape[3]};
  const int64_t T = axes.steps, G = axes.weight_batch, B = axes.rows, H = axes.H, period = z.dimensions()[2];
  for (const F32& c : {z, r, c_r, c_z, a_n}) shapes.has("a coefficient", c, {T, G, period, H});
  shapes.has("recurrent kernel", recurrent, {G, H, 3 * H})
      .may_have("dropout_mask", dropout_mask, {G, B, H})
      .has("ys", *ys, {T, G, B, H});
  shapes.may_have("mask", mask, {T, G, period}).may_have("resets", resets, {T, G, period});
  if (!shapes.fit()) return shapes.error();
  const Call call(pool, threads, axes.flops());
  const PackedWeightBatch packed = pack(call, axes, {.recurrent = recurrent.typed_data()}, reset_after, true);
  if (!packed.memory) return out_of_memory();
  const RowBlocks row_blocks(axes.weight_batch, axes.rows, balanced_rows(call, axes, false));
  const auto sizes_of = [&](int64_t rows) -> Sizes {
    return {.steps = T, .rows = rows, .in_features = 0, .features = H, .reset_after = reset_after, .reverse = reverse};
  };
  const Sizes largest = sizes_of(row_blocks.largest());
  return for_each_block(
      call, row_blocks, call.kernels.linear_recurrence_scratch(largest), [&](int64_t i, float* scratch) {
        const int64_t g = row_blocks.weights(i), first = row_blocks.first(i), row = g * B + first, step = G * B * H;
        const auto flags = [&](const Bool& of) -> Flags {
          return {.data = bytes(of) ? bytes(of) + g * period : nullptr, .step = G * period};
        };
        const auto coefficient = [&](const F32& of) -> Series {
          return {.data = of.typed_data() + g * period * H, .step = G * period * H};
        };
        const LinearRecurrence job = {
            .sizes = sizes_of(row_blocks.size(i)),
            .coefficients = {coefficient(z), coefficient(r), coefficient(c_r), coefficient(c_z), coefficient(a_n)},
            .mask = flags(mask),
            .resets = flags(resets),
            .first_row = first,
            .period = period,
            .dropout_mask = data_or_null(dropout_mask) ? dropout_mask.typed_data() + row * H : nullptr,
            .source = {.data = source.typed_data() + row * H, .step = step},
            .weights = packed.weights[g],
            .ys = {.data = ys->typed_data() + row * H, .step = step}};
        call.kernels.linear_recurrence(job, transposed, scratch);
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
                           .Arg<F32>()   // dropout_mask
                           .Arg<Bool>()  // mask
                           .Arg<Bool>()  // resets
                           .Arg<F32>()   // reset_state
                           .Ret<F32>()   // hs
                           .Ret<F32>()   // saved: preactivations of r,
                           .Ret<F32>()   // z,
                           .Ret<F32>()   // n,
                           .Ret<F32>()   // and q; empty where not
                           .Attr<bool>("reset_after")
                           .Attr<bool>("reverse")
                           .Attr<std::string_view>("candidate")
                           .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER(states_vjp_handler, states_vjp,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<F32>()   // xs
                           .Arg<F32>()   // h_0
                           .Arg<F32>()   // kernel
                           .Arg<F32>()   // bias
                           .Arg<F32>()   // recurrent kernel
                           .Arg<F32>()   // recurrent bias
                           .Arg<F32>()   // dropout_mask
                           .Arg<Bool>()  // mask
                           .Arg<Bool>()  // resets
                           .Arg<F32>()   // reset_state
                           .Arg<F32>()   // hs
                           .Arg<F32>()   // ct
                           .Arg<F32>()   // saved: preactivations of r,
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

XLA_FFI_DEFINE_HANDLER(linear_recurrence_handler, linear_recurrence,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<F32>()   // z
                           .Arg<F32>()   // r
                           .Arg<F32>()   // c_r
                           .Arg<F32>()   // c_z
                           .Arg<F32>()   // a_n
                           .Arg<F32>()   // recurrent kernel
                           .Arg<F32>()   // dropout_mask
                           .Arg<F32>()   // source
                           .Arg<Bool>()  // mask
                           .Arg<Bool>()  // resets
                           .Ret<F32>()   // ys
                           .Attr<bool>("reset_after")
                           .Attr<bool>("reverse")
                           .Attr<bool>("transposed")
                           .Attr<int64_t>("threads"));

// A handler that does not throw: XLA calls it as a function of C.
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
                               {"gru_jax_states_vjp", guarded<states_vjp_handler>},
                               {"gru_jax_linear_recurrence", guarded<linear_recurrence_handler>}};

}  // namespace

std::span<const Target> targets() { return kTargets; }

}  // namespace gru_jax
