// Vectors of 8 floats: AVX2 with FMA (Haswell, Zen and later). Compiled with -mavx2 -mfma -mbmi.
#include <immintrin.h>

#include "kernels/cpu/exact_kernels.h"
#include "kernels/cpu/vector_kernels.h"

namespace ringmaster {
namespace {

constexpr int kLanes = 8;
constexpr int kBlockVectors = 4;
typedef float Floats __attribute__((vector_size(32)));
typedef double Doubles __attribute__((vector_size(32)));
typedef int64_t Longs __attribute__((vector_size(32)));

inline Floats FusedMulAdd(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats SquareRoot(Floats x) { return _mm256_sqrt_ps(x); }

inline void Widen(Floats x, Doubles* low, Doubles* high) {
  *low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
  *high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
}

inline Floats Narrow(Doubles low, Doubles high) {
  return _mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low));
}

}  // namespace
}  // namespace ringmaster

#include "kernels/cpu/exact_long_to_double.h"

namespace ringmaster {
namespace {

inline uint32_t NonZeroBytes(const uint8_t* bytes) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  return static_cast<uint16_t>(~_mm_movemask_epi8(_mm_cmpeq_epi8(x, _mm_setzero_si128())));
}

}  // namespace
}  // namespace ringmaster

#include "kernels/cpu/exact_kernels_impl.h"

namespace ringmaster {

extern const ExactKernels kAvx2ExactKernels = MakeExactKernels("AVX2");

}  // namespace ringmaster
