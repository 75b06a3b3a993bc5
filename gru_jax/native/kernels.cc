// The kernels, compiled once for each instruction set, whose name is GRU_ISA. Everything that they are made of has internal
// linkage, and no header of the C++ library is included; see kernels.h.
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
#include "vector.inl"
#include "product.inl"
#include "walk.inl"
#include "states.inl"
#include "pull.inl"
#include "gradient.inl"
#include "linear.inl"
#include "weights.inl"
}  // namespace

extern const Kernels GRU_NAME(kernels_, GRU_ISA);
const Kernels GRU_NAME(kernels_, GRU_ISA) = {
    .name = GRU_STRING(GRU_ISA),
    .packed_size = packed_size,
    .pack = pack_weights,
    .gradient_size = gradient_size,
    .reduce = reduce,
    .chunks = chunks,
    .states = {.chunk_size = projected_size,
               .carry_size = states_carry_size,
               .ahead = project,
               .walk = walk_states,
               .behind = leave},
    .gradient = {.chunk_size = chunk_size,
                 .carry_size = gradient_carry_size,
                 .ahead = linearise_chunk,
                 .walk = walk_back,
                 .behind = contract},
    .linear_scratch = linear_scratch,
    .linear = linear,
};

}  // namespace gru_jax
