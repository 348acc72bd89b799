// Vectors of 4 floats in GCC's vector extension: SSE2 on x86-64, NEON on ARM, plain code elsewhere.
#include "kernels/cpu/exact_kernels.h"
#include "kernels/cpu/vector_kernels.h"

namespace ringmaster {
namespace {

constexpr int kLanes = 4;
constexpr int kBlockVectors = 4;
typedef float Floats __attribute__((vector_size(16)));
typedef double Doubles __attribute__((vector_size(16)));
typedef int64_t Longs __attribute__((vector_size(16)));
typedef float HalfFloats __attribute__((vector_size(8)));

inline void Widen(Floats x, Doubles* low, Doubles* high) {
  *low = __builtin_convertvector(__builtin_shufflevector(x, x, 0, 1), Doubles);
  *high = __builtin_convertvector(__builtin_shufflevector(x, x, 2, 3), Doubles);
}

inline Floats Narrow(Doubles low, Doubles high) {
  const HalfFloats lower = __builtin_convertvector(low, HalfFloats);
  const HalfFloats upper = __builtin_convertvector(high, HalfFloats);
  return __builtin_shufflevector(lower, upper, 0, 1, 2, 3);
}

#ifdef __FP_FAST_FMAF
inline Floats FusedMulAdd(Floats a, Floats b, Floats c) {
  Floats result;
  for (int i = 0; i < kLanes; ++i) result[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return result;
}
#else
// Without the instruction. The product is exact in fp64; the sum is rounded to odd (to the one of
// its two neighbours whose last bit is 1, unless it is exact), after which rounding to fp32 gives
// what one rounding would have given: Boldo, Melquiond, "Emulation of FMA and correctly rounded
// sums: proved algorithms using rounding to odd", IEEE Transactions on Computers 57(4), 2008. The
// error of the sum is Knuth's TwoSum.
inline Doubles AddToOdd(Doubles a, Doubles b) {
  const Doubles sum = a + b;
  const Doubles part = sum - a;
  const Doubles error = (a - (sum - part)) + (b - part);
  // Comparisons of NaN, where the sum is not finite, are false: it stays.
  const Longs is_inexact = (error < 0.0) | (error > 0.0);
  const Longs is_inward = (error > 0.0) ^ (sum > 0.0);  // the exact sum is the smaller magnitude
  const Longs is_even = ~(Longs)sum & 1;                // 0 or 1: what is to be added to the bits
  const Longs step = (is_even ^ is_inward) - is_inward;
  return (Doubles)((Longs)sum + (step & is_inexact));
}

inline Floats FusedMulAdd(Floats a, Floats b, Floats c) {
  Doubles a_half[2];
  Doubles b_half[2];
  Doubles c_half[2];
  Widen(a, &a_half[0], &a_half[1]);
  Widen(b, &b_half[0], &b_half[1]);
  Widen(c, &c_half[0], &c_half[1]);
  return Narrow(AddToOdd(a_half[0] * b_half[0], c_half[0]),
                AddToOdd(a_half[1] * b_half[1], c_half[1]));
}
#endif

inline Floats SquareRoot(Floats x) {
  Floats root;
  for (int i = 0; i < kLanes; ++i) root[i] = __builtin_sqrtf(x[i]);
  return root;
}

}  // namespace
}  // namespace ringmaster

#include "kernels/cpu/exact_long_to_double.h"

namespace ringmaster {
namespace {

inline uint32_t NonZeroBytes(const uint8_t* bytes) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<uint32_t>(bytes[i] != 0) << i;
  return mask;
}

}  // namespace
}  // namespace ringmaster

#include "kernels/cpu/exact_kernels_impl.h"

namespace ringmaster {

extern const ExactKernels kPortableExactKernels = MakeExactKernels("portable");

}  // namespace ringmaster
