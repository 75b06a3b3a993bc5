#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace gru_jax {

extern const Kernels kernels_baseline;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
#endif

namespace {

// What the processor can run, the best first. The conditions match the flags in CMakeLists.txt.
std::vector<const Kernels*> available() {
  std::vector<const Kernels*> tables;
#if defined(__x86_64__)
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  if (avx512) tables.push_back(&kernels_avx512);
  if (avx2) tables.push_back(&kernels_avx2);
#endif
  tables.push_back(&kernels_baseline);
  return tables;
}

const Kernels& choose() {
  std::vector<const Kernels*> tables = available();
  const char* variable = std::getenv("GRU_JAX_NATIVE_ISA");
  std::string wanted = variable ? variable : "";
  if (wanted.empty()) return *tables.front();
  std::string names;
  for (const Kernels* table : tables) {
    if (wanted == table->name) return *table;
    names += (names.empty() ? "" : ", ") + std::string(table->name);
  }
  throw std::invalid_argument("GRU_JAX_NATIVE_ISA: expected an instruction set of this processor (" + names +
                              "), got '" + wanted + "'");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace gru_jax
