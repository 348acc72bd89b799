#include "kernels/cpu/instruction_set.h"

namespace ringmaster {

std::vector<const VectorKernels*> AvailableVectorKernels() {
  std::vector<const VectorKernels*> available;
#if defined(__x86_64__)
  // The built-ins also ask whether the operating system saves the registers.
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    available.push_back(&kAvx512Kernels);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi")) {
    available.push_back(&kAvx2Kernels);
  }
#endif
  available.push_back(&kPortableKernels);
  return available;
}

}  // namespace ringmaster
