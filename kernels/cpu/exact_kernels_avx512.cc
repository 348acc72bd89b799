// Vectors of 16 floats: AVX-512 F, BW, DQ and VL (Skylake-X, Zen 4 and later).
#include <immintrin.h>

#include "kernels/cpu/exact_kernels.h"
#include "kernels/cpu/vector_kernels.h"

namespace ringmaster {
namespace {

constexpr int kLanes = 16;
constexpr int kBlockVectors = 8;
typedef float Floats __attribute__((vector_size(64)));
typedef double Doubles __attribute__((vector_size(64)));
typedef int64_t Longs __attribute__((vector_size(64)));
typedef float HalfFloats __attribute__((vector_size(32)));

inline Floats FusedMulAdd(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }

// The maskz forms, here and below: GCC 12 warns of an uninitialised value inside the plain ones.
inline Floats SquareRoot(Floats x) { return _mm512_maskz_sqrt_ps(0xFFFF, x); }

inline void Widen(Floats x, Doubles* low, Doubles* high) {
  *low = _mm512_maskz_cvtps_pd(0xFF, __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7));
  *high = _mm512_maskz_cvtps_pd(0xFF, __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15));
}

inline Floats Narrow(Doubles low, Doubles high) {
  const HalfFloats lower = _mm512_maskz_cvtpd_ps(0xFF, low);
  const HalfFloats upper = _mm512_maskz_cvtpd_ps(0xFF, high);
  return __builtin_shufflevector(lower, upper, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
                                 15);
}

inline Doubles ToDoubles(Longs x) { return _mm512_maskz_cvtepi64_pd(0xFF, (__m512i)x); }

inline uint32_t NonZeroBytes(const uint8_t* bytes) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  return _mm_test_epi8_mask(x, x);
}

}  // namespace
}  // namespace ringmaster

#include "kernels/cpu/exact_kernels_impl.h"

namespace ringmaster {

extern const ExactKernels kAvx512ExactKernels = MakeExactKernels("AVX-512");

}  // namespace ringmaster
