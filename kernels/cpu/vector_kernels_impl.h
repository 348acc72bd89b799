// The bodies of VectorKernels, in GCC's vector extension. Included by one source file per
// instruction set, which has defined in an unnamed namespace of ringmaster:
//   kLanes                               floats in a vector
//   kBlockVectors                        accumulators of multiply_pixels
//   MulAdd(Floats, Floats, Floats)       a * b + c, fused where there is such an instruction
//   AdamDirection(m, v, epsilon)         m / (sqrt(v) + epsilon)
//   NonZeroMask(const uint8_t*)          bit i of 32: byte i is not zero
//
// Everything here has internal linkage and calls no inline function of another header: the linker
// must never pick a copy of a shared function that was compiled for a newer CPU.

// IWYU pragma: private

#include "kernels/cpu/transpose_bytes_impl.h"

namespace ringmaster {
namespace {

typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef float UnalignedFloats __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

constexpr float kPixelScale = 1.0f / 255.0f;

inline Floats Load(const float* p) { return *reinterpret_cast<const UnalignedFloats*>(p); }
inline void Store(float* p, Floats x) { *reinterpret_cast<UnalignedFloats*>(p) = x; }
// (x - 0 is x, which the compiler knows; x + 0 is not, for -0.)
inline Floats Broadcast(float x) { return x - Floats{}; }

// NaN in x passes through both.
inline Floats Max(Floats x, Floats bound) { return x < bound ? bound : x; }
inline Floats Exp(Floats x);

inline float HorizontalSum(Floats x) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

inline float HorizontalMax(Floats x) {
  float max = x[0];
  for (int i = 1; i < kLanes; ++i) max = x[i] > max ? x[i] : max;
  return max;
}

// exp(x) for x <= 0 within 2 ulp; 0 below -87, where fp32 leaves its normal range; NaN for NaN.
// x = n ln 2 + r, |r| <= ln 2 / 2; the polynomial is Cephes's expf (Moshier, netlib.org/cephes).
inline Floats Exp(Floats x) {
  const Floats lowest = Broadcast(-87.0f);
  const Floats magic = Broadcast(0x1.8p23f);  // adding it rounds to an integer, in the low bits
  const Floats clamped = Max(x, lowest);
  const Floats shifted = MulAdd(clamped, Broadcast(1.44269504088896341f), magic);
  const Floats n = shifted - magic;
  Floats r = MulAdd(n, Broadcast(-0.693359375f), clamped);
  r = MulAdd(n, Broadcast(2.12194440e-4f), r);
  Floats p = Broadcast(1.9875691500e-4f);
  p = MulAdd(p, r, Broadcast(1.3981999507e-3f));
  p = MulAdd(p, r, Broadcast(8.3334519073e-3f));
  p = MulAdd(p, r, Broadcast(4.1665795894e-2f));
  p = MulAdd(p, r, Broadcast(1.6666665459e-1f));
  p = MulAdd(p, r, Broadcast(5.0000001201e-1f));
  p = MulAdd(p, r * r, r) + 1.0f;
  const Ints exponent = (Ints)shifted << 23;  // the magic number's own bits fall off
  const Floats scaled = (Floats)((Ints)p + exponent);
  const Floats result = x < lowest ? Floats{} : scaled;
  return x != x ? x : result;
}

void ScalePixels(const uint8_t* pixels, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<float>(pixels[i]) * kPixelScale;
}

// Adds to one row of c what `kTile` pixels contribute; a tile of b stays in the L1 cache while all
// rows pass over it.
constexpr int kTile = 32;

template <int kVectors>
inline void MultiplyTile(const uint8_t* pixels, const float* values, const float* b,
                         ptrdiff_t b_stride, bool add, float* c) {
  uint32_t mask = NonZeroMask(pixels);
  if (mask == 0 && add) return;
  Floats sum[kVectors];
#pragma GCC unroll 8
  for (int j = 0; j < kVectors; ++j) sum[j] = add ? Load(c + j * kLanes) : Floats{};
  while (mask != 0) {
    const ptrdiff_t k = __builtin_ctz(mask);
    mask &= mask - 1;
    const Floats x = Broadcast(values[pixels[k]]);
    const float* b_row = b + k * b_stride;
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) sum[j] = MulAdd(x, Load(b_row + j * kLanes), sum[j]);
  }
#pragma GCC unroll 8
  for (int j = 0; j < kVectors; ++j) Store(c + j * kLanes, sum[j]);
}

template <int kVectors>
void MultiplyColumns(const PixelProduct& p, int column) {
  const ptrdiff_t pixel_stride = p.pixel_stride;
  const ptrdiff_t c_stride = p.c_stride;
  for (int tile = 0; tile < p.depth; tile += kTile) {
    const bool add = tile > 0 || p.accumulate;
    const uint8_t* pixels = p.pixels + tile;
    const float* b = p.b + tile * p.b_stride + column;
    float* c = p.c + column;
    for (int row = 0; row < p.rows; ++row, pixels += pixel_stride, c += c_stride) {
      MultiplyTile<kVectors>(pixels, p.values, b, p.b_stride, add, c);
    }
  }
}

void MultiplyPixels(const PixelProduct& p) {
  int column = 0;
  for (; column + kBlockVectors * kLanes <= p.columns; column += kBlockVectors * kLanes) {
    MultiplyColumns<kBlockVectors>(p, column);
  }
  for (; column < p.columns; column += kLanes) MultiplyColumns<1>(p, column);
}

void BiasRelu(const float* bias, int rows, int columns, ptrdiff_t stride, float* x) {
  for (int r = 0; r < rows; ++r) {
    float* row = x + r * stride;
    int c = 0;
    for (; c + kLanes <= columns; c += kLanes) {
      Store(row + c, Max(Load(row + c) + Load(bias + c), Floats{}));
    }
    for (; c < columns; ++c) {
      const float z = row[c] + bias[c];
      row[c] = z < 0 ? 0 : z;
    }
  }
}

// Adds the bias, fills the padding with -infinity and returns the largest logit.
inline float PrepareLogits(const SoftmaxBatch& batch, float* row) {
  const float infinity = __builtin_inff();
  for (int c = 0; c < batch.classes; ++c) row[c] += batch.bias[c];
  for (ptrdiff_t c = batch.classes; c < batch.stride; ++c) row[c] = -infinity;
  Floats max = Load(row);
  for (ptrdiff_t c = kLanes; c < batch.stride; c += kLanes) {
    const Floats z = Load(row + c);
    max = z > max ? z : max;
  }
  return HorizontalMax(max);
}

inline int FirstEqual(const float* row, int count, float value) {
  for (int c = 0; c < count; ++c) {
    if (row[c] == value) return c;
  }
  return 0;  // only where a logit is NaN
}

inline void SoftmaxRow(const SoftmaxBatch& batch, int r) {
  float* row = batch.logits + r * batch.stride;
  const int label = batch.labels[r];
  const float max = PrepareLogits(batch, row);
  const int best = FirstEqual(row, batch.classes, max);
  const float label_logit = row[label];
  for (ptrdiff_t c = 0; c < batch.stride; c += kLanes) {
    Store(row + c, Exp(Load(row + c) - max));
  }
  // Without the largest term, which is exactly 1: then a small loss keeps its digits.
  row[best] = row[best] == 1.0f ? 0.0f : row[best];
  Floats partial = Load(row);
  for (ptrdiff_t c = kLanes; c < batch.stride; c += kLanes) partial += Load(row + c);
  const float others = HorizontalSum(partial);
  const float inverse = 1.0f / (1.0f + others);
  for (ptrdiff_t c = 0; c < batch.stride; c += kLanes) Store(row + c, Load(row + c) * inverse);
  row[best] += inverse;
  row[label] = label == best ? -others * inverse : row[label] - 1.0f;
  batch.losses[r] = __builtin_log1pf(others) + (max - label_logit);
  batch.predictions[r] = best;
}

void SoftmaxCrossEntropy(const SoftmaxBatch& batch) {
  for (int r = 0; r < batch.rows; ++r) SoftmaxRow(batch, r);
}

void ReluGradient(const float* activation, int rows, int columns, ptrdiff_t stride, float* delta) {
  for (int r = 0; r < rows; ++r) {
    const float* a = activation + r * stride;
    float* d = delta + r * stride;
    int c = 0;
    for (; c + kLanes <= columns; c += kLanes) {
      Store(d + c, Load(a + c) <= Floats{} ? Floats{} : Load(d + c));
    }
    for (; c < columns; ++c) d[c] = a[c] <= 0 ? 0 : d[c];
  }
}

void AddColumnSums(const float* x, int rows, int columns, ptrdiff_t stride, double* sums) {
  for (int r = 0; r < rows; ++r) {
    const float* row = x + r * stride;
    for (int c = 0; c < columns; ++c) sums[c] += static_cast<double>(row[c]);
  }
}

inline void AdamVector(const AdamUpdate& u, const float* gradient, float* w, float* m, float* v) {
  const Floats g = Load(gradient) * u.scale;
  const Floats m1 = MulAdd(g - Load(m), Broadcast(u.one_minus_beta1), Load(m));
  const Floats v1 = MulAdd(g * g - Load(v), Broadcast(u.one_minus_beta2), Load(v));
  Store(m, m1);
  Store(v, v1);
  Store(w, Load(w) - AdamDirection(m1, v1, Broadcast(u.epsilon)) * u.alpha);
}

void Adam(const AdamUpdate& u) {
  size_t i = 0;
  for (; i + kLanes <= u.count; i += kLanes) {
    AdamVector(u, u.gradient + i, u.parameters + i, u.first_moment + i, u.second_moment + i);
  }
  if (i == u.count) return;
  // The last few, through vectors of their own: no second formula for them.
  float rest[4][kLanes] = {};
  const size_t left = u.count - i;
  const float* const in[4] = {u.gradient, u.parameters, u.first_moment, u.second_moment};
  for (int a = 0; a < 4; ++a) {
    for (size_t j = 0; j < left; ++j) rest[a][j] = in[a][i + j];
  }
  AdamVector(u, rest[0], rest[1], rest[2], rest[3]);
  float* const out[3] = {u.parameters, u.first_moment, u.second_moment};
  for (int a = 0; a < 3; ++a) {
    for (size_t j = 0; j < left; ++j) out[a][i + j] = rest[a + 1][j];
  }
}

void Sgd(const float* gradient, size_t count, float rate, float* parameters) {
  for (size_t i = 0; i < count; ++i) parameters[i] -= rate * gradient[i];
}

constexpr VectorKernels MakeKernels(const char* name) {
  return VectorKernels{name,           ScalePixels,
                       TransposeBytes, MultiplyPixels,
                       BiasRelu,       SoftmaxCrossEntropy,
                       ReluGradient,   AddColumnSums,
                       Adam,           Sgd};
}

}  // namespace
}  // namespace ringmaster
