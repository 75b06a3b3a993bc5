#ifndef GRU_JAX_NATIVE_ISA_H_
#define GRU_JAX_NATIVE_ISA_H_

#include "kernels.h"

namespace gru_jax {

// The kernels in use: those of the processor's best instruction set, or of the one that the environment variable
// GRU_JAX_NATIVE_ISA names. The first call chooses for the life of the process. Throws std::invalid_argument if the
// processor does not have the instruction set of the variable.
const Kernels& kernels();

}  // namespace gru_jax

#endif
