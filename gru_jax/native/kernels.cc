// The kernels, compiled once for each instruction set, whose name is GRU_ISA. All of their code has internal linkage,
// and no header of the C++ library is included; kernels.h says why. The .inl files are its parts, in this order.
#include "kernels.h"

#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>  // always inlined, so that the linker has nothing to merge
#endif

#if defined(__AVX512F__)
#define GRU_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define GRU_VECTOR_BYTES 32
#else
#define GRU_VECTOR_BYTES 16  // SSE2, NEON
#endif

#define GRU_CONCATENATED(a, b) a##b
#define GRU_NAME(a, b) GRU_CONCATENATED(a, b)
#define GRU_QUOTED(a) #a
#define GRU_STRING(a) GRU_QUOTED(a)

namespace gru_jax {
namespace {
// clang-format off: the order matters
#include "vector.inl"
#include "product.inl"
#include "chunks.inl"
#include "states.inl"
#include "adjoint_step.inl"
#include "states_vjp.inl"
#include "linear_recurrence.inl"
#include "weights.inl"
// clang-format on
}  // namespace

extern const Kernels GRU_NAME(kernels_, GRU_ISA);
const Kernels GRU_NAME(kernels_, GRU_ISA) = {
    .name = GRU_STRING(GRU_ISA),
    .packed_size = packed_size,
    .pack = pack_weights,
    .weight_gradients_size = weight_gradients_size,
    .reduce_weight_gradients = reduce_weight_gradients,
    .chunks = chunks,
    .states = {.chunk_size = projected_size,
               .carry_size = states_carry_size,
               .prologue = project_chunk,
               .recur = recur_states,
               .epilogue = noop_epilogue},
    .states_vjp = {.chunk_size = vjp_chunk_size,
                   .carry_size = vjp_carry_size,
                   .prologue = linearise_chunk,
                   .recur = recur_adjoint,
                   .epilogue = contract_chunk},
    .linear_recurrence_scratch = linear_recurrence_scratch,
    .linear_recurrence = linear_recurrence,
};

}  // namespace gru_jax
