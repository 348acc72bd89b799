// Vectors of 4 floats in GCC's vector extension: SSE2 on x86-64, NEON on ARM, plain code elsewhere.
#include "kernels/cpu/vector_kernels.h"

namespace ringmaster {
namespace {

constexpr int kLanes = 4;
constexpr int kBlockVectors = 8;
typedef float Floats __attribute__((vector_size(4 * kLanes)));

inline Floats MulAdd(Floats a, Floats b, Floats c) { return a * b + c; }

inline Floats AdamDirection(Floats m, Floats v, Floats epsilon) {
  Floats root;
  for (int i = 0; i < kLanes; ++i) root[i] = __builtin_sqrtf(v[i]);
  return m / (root + epsilon);
}

inline uint32_t NonZeroMask(const uint8_t* bytes) {
  uint32_t mask = 0;
  for (int i = 0; i < 32; ++i) mask |= static_cast<uint32_t>(bytes[i] != 0) << i;
  return mask;
}

}  // namespace
}  // namespace ringmaster

#include "kernels/cpu/vector_kernels_impl.h"

namespace ringmaster {

extern const VectorKernels kPortableKernels = MakeKernels("portable");

}  // namespace ringmaster
