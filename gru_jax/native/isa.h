#ifndef GRU_JAX_NATIVE_ISA_H_
#define GRU_JAX_NATIVE_ISA_H_

#include "kernels.h"

namespace gru_jax {

// The kernels in use: of the best instruction set that the processor has, or of the one that the environment variable
// GRU_JAX_NATIVE_ISA names. The first call chooses, for the life of the process. Throws std::invalid_argument where the
// processor has not what the variable names.
const Kernels& kernels();

}  // namespace gru_jax

#endif
