// The operands of the handlers, and what shapes they must have.
//
// float32 if nothing else is said, with T steps, G sets of weights, and B rows (sequences) for each:
//   xs (T, G or 1, B, D), h_0 (G, B, H), kernel (G, D, 3H), bias (G, 3H), recurrent kernel (G, H, 3H), recurrent bias
//   (G, H), dropout_mask (G, B, H), mask and resets (T, G, B) bool, reset_state (G, B, H).
// Biases, dropout_mask, mask, resets and reset_state are optional: empty where they are not given. Then reset_state is
// zero.
#ifndef GRU_JAX_NATIVE_OPERANDS_H_
#define GRU_JAX_NATIVE_OPERANDS_H_

#include <algorithm>
#include <string>
#include <string_view>

#include "call.h"
#include "shapes.h"
#include "xla/ffi/api/ffi.h"

namespace gru_jax {

using F32 = ffi::Buffer<ffi::F32>;
using Bool = ffi::Buffer<ffi::PRED>;
using Result = ffi::ResultBuffer<ffi::F32>;

inline void prefer_large_pages(Result& result) { prefer_large_pages(result->untyped_data(), result->size_bytes()); }

template <class Buffer>
auto data_or_null(const Buffer& buffer) -> decltype(buffer.typed_data()) {
  return buffer.element_count() ? buffer.typed_data() : nullptr;
}

inline const uint8_t* bytes(const Bool& flags) { return reinterpret_cast<const uint8_t*>(data_or_null(flags)); }

// The operands that the states and their vjp share.
struct Operands {
  F32 xs, h_0, kernel, bias, recurrent, recurrent_bias, dropout_mask;
  Bool mask, resets;
  F32 reset_state;
  bool reset_after, reverse;
  Axes axes = {};
  Candidate candidate = Candidate::kTanh;
  Memory zero = nullptr;  // (H), the reset state where none is given

  // Reads the name of the candidate's activation; false if it is unknown.
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
            .bias = data_or_null(bias),
            .recurrent = recurrent.typed_data(),
            .recurrent_bias = data_or_null(recurrent_bias)};
  }

  // Of a block of so many rows.
  Sizes sizes(int64_t rows) const {
    return {.steps = axes.steps,
            .rows = rows,
            .in_features = axes.D,
            .features = axes.H,
            .reset_after = reset_after,
            .reverse = reverse};
  }

  Recurrence block(const RowBlocks& row_blocks, int64_t i, const PackedWeightBatch& packed) const {
    const int64_t g = row_blocks.weights(i), first = row_blocks.first(i), row = g * axes.rows + first;
    const int64_t x_batch = xs.dimensions()[1], all_rows = axes.weight_batch * axes.rows;
    const int64_t x_row = (x_batch == 1 ? 0 : g * axes.rows) + first;
    return {.sizes = sizes(row_blocks.size(i)),
            .candidate = candidate,
            .xs = {.data = xs.typed_data() + x_row * axes.D, .step = x_batch * axes.rows * axes.D},
            .h_0 = h_0.typed_data() + row * axes.H,
            .reset_state = data_or_null(reset_state) ? reset_state.typed_data() + row * axes.H : zero.get(),
            .reset_row = data_or_null(reset_state) ? axes.H : 0,
            .dropout_mask = data_or_null(dropout_mask) ? dropout_mask.typed_data() + row * axes.H : nullptr,
            .mask = {.data = bytes(mask) ? bytes(mask) + row : nullptr, .step = all_rows},
            .resets = {.data = bytes(resets) ? bytes(resets) + row : nullptr, .step = all_rows},
            .weights = packed.weights[g]};
  }
};

inline ffi::Error unknown_candidate(std::string_view name) {
  return ffi::Error::InvalidArgument("gru_jax: candidate must be tanh or sigmoid, got " + std::string(name));
}

// Sets the axes, and checks the shapes of the operands.
inline Shapes check_shapes(Operands& o) {
  Shapes shapes;
  if (!shapes.has_axes("xs", o.xs, 4).has_axes("h_0", o.h_0, 3).fit()) return shapes;
  const auto x = o.xs.dimensions(), h = o.h_0.dimensions();
  o.axes = {.steps = x[0], .weight_batch = h[0], .rows = h[1], .D = x[3], .H = h[2]};
  const auto [T, G, B, D, H] = o.axes;
  shapes.has("xs", o.xs, {T, x[1] == 1 ? 1 : G, B, D})
      .has("kernel", o.kernel, {G, D, 3 * H})
      .may_have("bias", o.bias, {G, 3 * H})
      .has("recurrent kernel", o.recurrent, {G, H, 3 * H})
      .may_have("recurrent bias", o.recurrent_bias, {G, H})
      .may_have("dropout_mask", o.dropout_mask, {G, B, H})
      .may_have("mask", o.mask, {T, G, B})
      .may_have("resets", o.resets, {T, G, B})
      .may_have("reset_state", o.reset_state, {G, B, H});
  return shapes;
}

// Saved preactivations are all that the cell has, or none.
template <class Buffer>
void check_saved(Shapes& shapes, const Operands& o, const Buffer& r, const Buffer& z, const Buffer& n,
                 const Buffer& q) {
  const auto [T, G, B, D, H] = o.axes;
  const bool given = r.element_count() > 0;
  shapes.has_if(given, "saved r", r, {T, G, B, H})
      .has_if(given, "saved z", z, {T, G, B, H})
      .has_if(given, "saved n", n, {T, G, B, H});
  shapes.has_if(given && o.reset_after, "saved q", q, {T, G, B, H});
}

}  // namespace gru_jax

#endif
