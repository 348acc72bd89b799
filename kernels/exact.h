// The arithmetic of reproducible runs: the same bits on every CPU and every GPU.
//
// What is written here is compiled for each target, and every operation in it is one that IEEE 754
// defines to the bit: addition, multiplication, division, square root and fused multiply-add in
// fp32 and fp64, rounded to nearest, ties to even. Nothing comes from a mathematical library. A
// source file that includes this must be compiled without contraction (gcc and clang:
// -ffp-contract=off, nvcc: --fmad=false, with its defaults for division, root and denormals).
//
// Order, which is the other half of the result:
//   A batch is cut into micro-shards of kMicroShard samples from its beginning on; the last one may
//   be shorter. A rank computes whole micro-shards (SamplingPlan::Slice).
//   An output of a layer is one chain of MulAdd over its inputs k in order, from +0, then the bias
//   is added. In the first layer the chain passes over the pixels that are 0. A pixel is
//   pixel * (1 / 255), rounded once for the quotient and once for the product.
//   The gradient by a layer's input is one chain over the outputs in order, from +0; then 0 where
//   the activation is not above 0.
//   The gradient by a weight is, for each micro-shard, one chain over the samples in order, from
//   +0; by a bias the sum of the samples' in order. (Whether terms that are 0 take part does not
//   show: quanta have no sign of zero.)
//   Each micro-shard's gradient is rounded to a whole number of kQuantum, and from there on the
//   gradients are summed as integers, in any order.
//
// Everything has internal linkage: each file has its own copy, for the instructions it is compiled
// for, and the linker can pick no other. An `A` is what the arithmetic is done with: One, a number
// at a time, or a vector type of kernels/cpu/exact_kernels_impl.h with the same members.
//
// Thread safety: pure functions over their arguments.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/host_device.h"

namespace ringmaster::exact {

// What gradients are whole numbers of when they are summed.
inline constexpr double kQuantum = 0x1p-40;
// A micro-shard's gradient must be below this in magnitude: its quanta then are below 2^51, which
// Quantize() gets right, and the sum of kMostMicroShards of them (common/sampling_plan.h) cannot
// overflow an int64.
inline constexpr float kGradientLimit = 0x1p11f;

inline constexpr float kPixelScale = 1.0f / 255.0f;

// The optimizer's factors for one update.
struct AdamFactors {
  float one_minus_beta1 = 0;
  float one_minus_beta2 = 0;
  float alpha = 0;  // AdamAlpha()
  float epsilon = 0;
};

namespace {

struct One {
  using Float = float;
  using Int = uint32_t;

  RM_HOST_DEVICE static inline Float Splat(float x) { return x; }
  RM_HOST_DEVICE static inline Int SplatInt(uint32_t i) { return i; }
  RM_HOST_DEVICE static inline Float Load(const float* p) { return *p; }
  RM_HOST_DEVICE static inline void Store(float* p, Float x) { *p = x; }
  RM_HOST_DEVICE static inline Float ToFloat(Int i) { return static_cast<float>(i); }
#ifdef __CUDA_ARCH__
  RM_HOST_DEVICE static inline Float MulAdd(Float a, Float b, Float c) {
    return __fmaf_rn(a, b, c);
  }
  RM_HOST_DEVICE static inline Float Sqrt(Float x) { return __fsqrt_rn(x); }
  RM_HOST_DEVICE static inline Float Divide(Float a, Float b) { return __fdiv_rn(a, b); }
  RM_HOST_DEVICE static inline Int Bits(Float x) { return __float_as_uint(x); }
  RM_HOST_DEVICE static inline Float FromBits(Int bits) { return __uint_as_float(bits); }
#else
  // Where there is no such instruction the C library's is called, which rounds once as well.
  RM_HOST_DEVICE static inline Float MulAdd(Float a, Float b, Float c) {
    return __builtin_fmaf(a, b, c);
  }
  RM_HOST_DEVICE static inline Float Sqrt(Float x) { return __builtin_sqrtf(x); }
  RM_HOST_DEVICE static inline Float Divide(Float a, Float b) { return a / b; }
  RM_HOST_DEVICE static inline Int Bits(Float x) {
    Int bits = 0;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
  }
  RM_HOST_DEVICE static inline Float FromBits(Int bits) {
    Float x = 0;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
  }
#endif
};

// A step of Horner's scheme: p x + coefficient.
template <class A>
RM_HOST_DEVICE inline typename A::Float Horner(typename A::Float p, typename A::Float x,
                                               float coefficient) {
  return A::MulAdd(p, x, A::Splat(coefficient));
}

// exp(x) for x <= 0 within 1 ulp; 0 below -87, where fp32 leaves its normal range; NaN for NaN.
// x = n ln 2 + r, |r| <= ln 2 / 2; the polynomial is Cephes's expf (Moshier, netlib.org/cephes).
template <class A>
RM_HOST_DEVICE inline typename A::Float Exp(typename A::Float x) {
  using Float = typename A::Float;
  const Float lowest = A::Splat(-87.0f);
  const Float magic = A::Splat(0x1.8p23f);  // adding it rounds to an integer, in the low bits
  const Float clamped = x < lowest ? lowest : x;
  const Float shifted = A::MulAdd(clamped, A::Splat(1.44269504088896341f), magic);
  const Float n = shifted - magic;
  Float r = A::MulAdd(n, A::Splat(-0.693359375f), clamped);
  r = A::MulAdd(n, A::Splat(2.12194440e-4f), r);
  Float p = A::Splat(1.9875691500e-4f);
  p = Horner<A>(p, r, 1.3981999507e-3f);
  p = Horner<A>(p, r, 8.3334519073e-3f);
  p = Horner<A>(p, r, 4.1665795894e-2f);
  p = Horner<A>(p, r, 1.6666665459e-1f);
  p = Horner<A>(p, r, 5.0000001201e-1f);
  p = A::MulAdd(p, r * r, r) + A::Splat(1.0f);
  // The magic number's own bits fall off.
  const Float scaled = A::FromBits(A::Bits(p) + (A::Bits(shifted) << 23));
  const Float result = x < lowest ? A::Splat(0.0f) : scaled;
  return x != x ? x : result;
}

// log(1 + x) for 0 <= x < 2^24 within 1 ulp; NaN for NaN. u = 1 + x rounded, and what the
// rounding lost comes back as a term of first order (as in FreeBSD's log1pf); u = 2^n (1 + f) with
// 1 + f in [sqrt(1/2), sqrt(2)); the polynomial is Cephes's logf (Moshier, netlib.org/cephes).
template <class A>
RM_HOST_DEVICE inline typename A::Float LogOnePlus(typename A::Float x) {
  using Float = typename A::Float;
  using Int = typename A::Int;
  constexpr uint32_t kOne = 0x3F800000u;
  constexpr uint32_t kRootOfHalf = 0x3F3504F3u;
  const Float one = A::Splat(1.0f);
  const Float u = one + x;
  const Float lost = A::Divide(x - (u - one), u);
  const Int bits = A::Bits(u) + A::SplatInt(kOne - kRootOfHalf);
  const Float n = A::ToFloat((bits >> 23) - A::SplatInt(127));
  const Float f = A::FromBits((bits & A::SplatInt(0x007FFFFFu)) + A::SplatInt(kRootOfHalf)) - one;
  const Float square = f * f;
  Float p = A::Splat(7.0376836292e-2f);
  p = Horner<A>(p, f, -1.1514610310e-1f);
  p = Horner<A>(p, f, 1.1676998740e-1f);
  p = Horner<A>(p, f, -1.2420140846e-1f);
  p = Horner<A>(p, f, 1.4249322787e-1f);
  p = Horner<A>(p, f, -1.6668057665e-1f);
  p = Horner<A>(p, f, 2.0000714765e-1f);
  p = Horner<A>(p, f, -2.4999993993e-1f);
  p = Horner<A>(p, f, 3.3333331174e-1f);
  Float y = A::MulAdd(p * f, square, lost);
  y = A::MulAdd(n, A::Splat(-2.12194440e-4f), y);
  y = A::MulAdd(square, A::Splat(-0.5f), y);
  const Float result = A::MulAdd(n, A::Splat(0.693359375f), f + y);
  return x != x ? x : result;
}

// Negative becomes 0; NaN stays NaN.
template <class A>
RM_HOST_DEVICE inline typename A::Float Relu(typename A::Float z) {
  return z < A::Splat(0.0f) ? A::Splat(0.0f) : z;
}
// `delta` where the activation is above 0 or NaN, else 0.
template <class A>
RM_HOST_DEVICE inline typename A::Float ReluGradient(typename A::Float activation,
                                                     typename A::Float delta) {
  return activation <= A::Splat(0.0f) ? A::Splat(0.0f) : delta;
}

template <class A>
struct Softmax {
  typename A::Float loss;
  typename A::Int prediction;  // the first class with the largest logit
};

// Softmax, cross-entropy and its gradient of one sample, or one for each lane: logits[c * stride]
// in, softmax - onehot out. Sums are over the classes in order, without the largest term, which is
// exactly 1: then a small loss keeps its digits. The loss is log(1 + others) + max - logit.
template <class A>
RM_HOST_DEVICE inline Softmax<A> SoftmaxCrossEntropy(float* logits, ptrdiff_t stride, int classes,
                                                     typename A::Int label) {
  using Float = typename A::Float;
  using Int = typename A::Int;
  Float max = A::Load(logits);
  Int best = A::SplatInt(0);
  Float label_logit = max;
  for (int c = 1; c < classes; ++c) {
    const Float z = A::Load(logits + c * stride);
    const Int index = A::SplatInt(static_cast<uint32_t>(c));
    best = z > max ? index : best;
    max = z > max ? z : max;
    label_logit = label == index ? z : label_logit;
  }
  Float others = A::Splat(0.0f);
  for (int c = 0; c < classes; ++c) {
    const Float e = Exp<A>(A::Load(logits + c * stride) - max);
    others = best == A::SplatInt(static_cast<uint32_t>(c)) ? others : others + e;
    A::Store(logits + c * stride, e);
  }
  const Float one = A::Splat(1.0f);
  const Float inverse = A::Divide(one, one + others);
  for (int c = 0; c < classes; ++c) {
    const Int index = A::SplatInt(static_cast<uint32_t>(c));
    const Float probability = A::Load(logits + c * stride) * inverse;  // inverse, of the largest
    const Float at_label = best == index ? -others * inverse : probability - one;
    A::Store(logits + c * stride, label == index ? at_label : probability);
  }
  return {LogOnePlus<A>(others) + (max - label_logit), best};
}

// Whether Quantize(x) may be called: a number, below kGradientLimit in magnitude.
RM_HOST_DEVICE inline bool IsRepresentable(float x) {
  return (One::Bits(x) & 0x7FFFFFFFu) < One::Bits(kGradientLimit);
}

// x in units of kQuantum, rounded to the nearest whole number, ties to even. The product is exact;
// adding 1.5 * 2^52 rounds it and leaves the integer in the low bits.
RM_HOST_DEVICE inline int64_t Quantize(float x) {
  constexpr double kMagic = 0x1.8p52;
  const double shifted = static_cast<double>(x) * (1.0 / kQuantum) + kMagic;
#ifdef __CUDA_ARCH__
  return __double_as_longlong(shifted) - __double_as_longlong(kMagic);
#else
  int64_t bits = 0;
  int64_t magic_bits = 0;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  __builtin_memcpy(&magic_bits, &kMagic, sizeof magic_bits);
  return bits - magic_bits;
#endif
}

// What a sum of quanta is multiplied by to be the mean gradient of `samples`; 0 for none.
RM_HOST_DEVICE inline double MeanScale(uint64_t samples) {
  return samples == 0 ? 0.0 : kQuantum / static_cast<double>(samples);
}
// Rounded as a double, by the factor, and to fp32.
RM_HOST_DEVICE inline float MeanGradient(int64_t quanta, double mean_scale) {
  return static_cast<float>(static_cast<double>(quanta) * mean_scale);
}

// base^exponent by repeated squaring. Not pow(), whose last bit is the library's choice.
RM_HOST_DEVICE inline double Power(double base, uint64_t exponent) {
  double power = 1;
  for (; exponent != 0; exponent >>= 1) {
    if ((exponent & 1) != 0) power = power * base;
    base = base * base;
  }
  return power;
}

RM_HOST_DEVICE inline double DoubleSqrt(double x) {
#ifdef __CUDA_ARCH__
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

// Adam's step size at update `t`, from 1: learning_rate sqrt(1 - beta2^t) / (1 - beta1^t) in fp64,
// then rounded.
RM_HOST_DEVICE inline float AdamAlpha(float learning_rate, float beta1, float beta2, uint64_t t) {
  const double root = DoubleSqrt(1.0 - Power(beta2, t));
  return static_cast<float>(static_cast<double>(learning_rate) * root / (1.0 - Power(beta1, t)));
}

// `t`: as AdamAlpha().
RM_HOST_DEVICE inline AdamFactors MakeAdamFactors(float learning_rate, float beta1, float beta2,
                                                  float epsilon, uint64_t t) {
  return {static_cast<float>(1.0 - static_cast<double>(beta1)),
          static_cast<float>(1.0 - static_cast<double>(beta2)),
          AdamAlpha(learning_rate, beta1, beta2, t), epsilon};
}

// One Adam step in Keras's form (keras/src/optimizers/adam.py) with the mean gradient g:
//   m += (g - m) (1 - beta1);  v += (g^2 - v) (1 - beta2);  w -= alpha (m / (sqrt(v) + epsilon))
template <class A>
RM_HOST_DEVICE inline void Adam(typename A::Float g, const AdamFactors& factors, float* w, float* m,
                                float* v) {
  using Float = typename A::Float;
  const Float m0 = A::Load(m);
  const Float v0 = A::Load(v);
  const Float m1 = A::MulAdd(g - m0, A::Splat(factors.one_minus_beta1), m0);
  const Float v1 = A::MulAdd(g * g - v0, A::Splat(factors.one_minus_beta2), v0);
  const Float direction = A::Divide(m1, A::Sqrt(v1) + A::Splat(factors.epsilon));
  A::Store(m, m1);
  A::Store(v, v1);
  A::Store(w, A::MulAdd(direction, A::Splat(-factors.alpha), A::Load(w)));
}

// w -= rate g
template <class A>
RM_HOST_DEVICE inline void Sgd(typename A::Float g, float rate, float* w) {
  A::Store(w, A::MulAdd(g, A::Splat(-rate), A::Load(w)));
}

}  // namespace
}  // namespace ringmaster::exact
