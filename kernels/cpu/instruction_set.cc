#include "kernels/cpu/instruction_set.h"

namespace ringmaster {
namespace {

#if defined(__x86_64__)
// The built-ins also ask whether the operating system saves the registers.
bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi");
}
#endif

}  // namespace

std::vector<const VectorKernels*> AvailableVectorKernels() {
  std::vector<const VectorKernels*> available;
#if defined(__x86_64__)
  if (HasAvx512()) available.push_back(&kAvx512Kernels);
  if (HasAvx2()) available.push_back(&kAvx2Kernels);
#endif
  available.push_back(&kPortableKernels);
  return available;
}

std::vector<const ExactKernels*> AvailableExactKernels() {
  std::vector<const ExactKernels*> available;
#if defined(__x86_64__)
  if (HasAvx512()) available.push_back(&kAvx512ExactKernels);
  if (HasAvx2()) available.push_back(&kAvx2ExactKernels);
#endif
  available.push_back(&kPortableExactKernels);
  return available;
}

}  // namespace ringmaster
