#ifndef GRU_JAX_NATIVE_TARGETS_H_
#define GRU_JAX_NATIVE_TARGETS_H_

#include <span>

#include "xla/ffi/api/c_api.h"

namespace gru_jax {

// A handler and the name under which XLA calls it.
struct Target {
  const char* name;
  XLA_FFI_Handler* handler;
};

// All of them, as ffi.cc defines them.
std::span<const Target> targets();

}  // namespace gru_jax

#endif
