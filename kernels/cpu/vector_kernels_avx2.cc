// Vectors of 8 floats: AVX2 with FMA (Haswell, Zen and later). Compiled with -mavx2 -mfma -mbmi.
#include <immintrin.h>

#include "kernels/cpu/vector_kernels.h"

namespace ringmaster {
namespace {

constexpr int kLanes = 8;
constexpr int kBlockVectors = 8;
typedef float Floats __attribute__((vector_size(4 * kLanes)));

inline Floats MulAdd(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }

inline Floats AdamDirection(Floats m, Floats v, Floats epsilon) {
  return m / (Floats(_mm256_sqrt_ps(v)) + epsilon);
}

inline uint32_t NonZeroMask(const uint8_t* bytes) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  const __m256i zero = _mm256_cmpeq_epi8(x, _mm256_setzero_si256());
  return ~static_cast<uint32_t>(_mm256_movemask_epi8(zero));
}

}  // namespace
}  // namespace ringmaster

#include "kernels/cpu/vector_kernels_impl.h"

namespace ringmaster {

extern const VectorKernels kAvx2Kernels = MakeKernels("AVX2");

}  // namespace ringmaster
