// The bodies of ExactKernels, in GCC's vector extension. Included by one source file per
// instruction set, which has defined in an unnamed namespace of ringmaster:
//   kLanes, Floats                       floats in a vector, at most 16
//   kBlockVectors                        accumulators of multiply_pixels and gradient
//   Doubles, Longs                       vectors of half as many
//   FusedMulAdd(Floats, Floats, Floats)  a * b + c, rounded once
//   SquareRoot(Floats)
//   Widen(Floats, Doubles*, Doubles*)    the lower and the upper half
//   Narrow(Doubles, Doubles)             back, rounded to nearest
//   ToDoubles(Longs)                     rounded to nearest
//   NonZeroBytes(const uint8_t*)         bit i of 16: byte i is not zero
//
// Everything here has internal linkage and calls no inline function of another header but
// kernels/exact.h, whose functions have it too: the linker must never pick a copy of a shared
// function that was compiled for a newer CPU.

// IWYU pragma: private

#include "kernels/cpu/transpose_bytes_impl.h"

namespace ringmaster {
namespace {

typedef uint32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef int32_t SignedInts __attribute__((vector_size(4 * kLanes)));
typedef float UnalignedFloats __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int64_t UnalignedLongs __attribute__((vector_size(4 * kLanes), aligned(8), may_alias));
typedef float Four __attribute__((vector_size(16)));
typedef float UnalignedFour __attribute__((vector_size(16), aligned(4), may_alias));

constexpr int kRows = static_cast<int>(kMicroShard);
constexpr int kRowVectors = kRows / kLanes;
constexpr int kHalf = kLanes / 2;
static_assert(kRows == 16 && kExactPadding == kRows);

// What exact.h computes with.
struct Vector {
  using Float = Floats;
  using Int = Ints;

  // (x - 0 is x, which the compiler knows; x + 0 is not, for -0.)
  static inline Float Splat(float x) { return x - Floats{}; }
  static inline Int SplatInt(uint32_t i) { return i - Ints{}; }
  static inline Float Load(const float* p) { return *reinterpret_cast<const UnalignedFloats*>(p); }
  static inline void Store(float* p, Float x) { *reinterpret_cast<UnalignedFloats*>(p) = x; }
  static inline Float ToFloat(Int i) { return __builtin_convertvector((SignedInts)i, Floats); }
  static inline Float MulAdd(Float a, Float b, Float c) { return FusedMulAdd(a, b, c); }
  static inline Float Sqrt(Float x) { return SquareRoot(x); }
  static inline Float Divide(Float a, Float b) { return a / b; }
  static inline Int Bits(Float x) { return (Ints)x; }
  static inline Float FromBits(Int bits) { return (Floats)bits; }
};

void MulAddAll(const float* a, const float* b, const float* c, size_t count, float* out) {
  for (size_t i = 0; i < count; i += kLanes) {
    float in[3][kLanes] = {};
    float result[kLanes];
    const size_t lanes = count - i < kLanes ? count - i : kLanes;
    for (size_t j = 0; j < lanes; ++j) {
      in[0][j] = a[i + j];
      in[1][j] = b[i + j];
      in[2][j] = c[i + j];
    }
    Vector::Store(result,
                  Vector::MulAdd(Vector::Load(in[0]), Vector::Load(in[1]), Vector::Load(in[2])));
    for (size_t j = 0; j < lanes; ++j) out[i + j] = result[j];
  }
}

// Takes the chains of one row on by the non-zero ones of kTile pixels.
constexpr int kTile = 32;

template <int kVectors>
inline void MultiplyTile(const uint8_t* pixels, const float* values, const float* b,
                         ptrdiff_t b_stride, bool is_first, float* c) {
  uint32_t mask = NonZeroBytes(pixels) | NonZeroBytes(pixels + 16) << 16;
  if (mask == 0 && !is_first) return;
  Floats sum[kVectors];
#pragma GCC unroll 8
  for (int j = 0; j < kVectors; ++j) sum[j] = is_first ? Floats{} : Vector::Load(c + j * kLanes);
  while (mask != 0) {
    const ptrdiff_t k = __builtin_ctz(mask);
    mask &= mask - 1;
    const Floats x = Vector::Splat(values[pixels[k]]);
    const float* b_row = b + k * b_stride;
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      sum[j] = Vector::MulAdd(x, Vector::Load(b_row + j * kLanes), sum[j]);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < kVectors; ++j) Vector::Store(c + j * kLanes, sum[j]);
}

// A tile of b stays in the L1 cache while all rows pass over it.
template <int kVectors>
void MultiplyColumns(const PixelProduct& p, int column) {
  for (int tile = 0; tile < p.depth; tile += kTile) {
    const uint8_t* pixels = p.pixels + tile;
    const float* b = p.b + tile * p.b_stride + column;
    float* c = p.c + column;
    for (int row = 0; row < p.rows; ++row, pixels += p.pixel_stride, c += p.c_stride) {
      MultiplyTile<kVectors>(pixels, p.values, b, p.b_stride, tile == 0, c);
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

// A block of 4 x 4: two rounds of a perfect shuffle of the rows.
inline void TransposeFour(const float* in, ptrdiff_t in_stride, float* out, ptrdiff_t out_stride) {
  const auto load = [&](int row) {
    return *reinterpret_cast<const UnalignedFour*>(in + row * in_stride);
  };
  const Four row[4] = {load(0), load(1), load(2), load(3)};
  const Four a = __builtin_shufflevector(row[0], row[2], 0, 4, 1, 5);
  const Four b = __builtin_shufflevector(row[0], row[2], 2, 6, 3, 7);
  const Four c = __builtin_shufflevector(row[1], row[3], 0, 4, 1, 5);
  const Four d = __builtin_shufflevector(row[1], row[3], 2, 6, 3, 7);
  const Four column[4] = {
      __builtin_shufflevector(a, c, 0, 4, 1, 5), __builtin_shufflevector(a, c, 2, 6, 3, 7),
      __builtin_shufflevector(b, d, 0, 4, 1, 5), __builtin_shufflevector(b, d, 2, 6, 3, 7)};
  for (int i = 0; i < 4; ++i) {
    *reinterpret_cast<UnalignedFour*>(out + i * out_stride) = column[i];
  }
}

inline void TransposeBlock(const float* in, ptrdiff_t in_stride, float* out, ptrdiff_t out_stride) {
  for (int r = 0; r < 16; r += 4) {
    for (int c = 0; c < 16; c += 4) {
      TransposeFour(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
    }
  }
}

void ToRows(const float* in, int units, ptrdiff_t stride, float* out) {
  for (int unit = 0; unit < units; unit += 16) {
    TransposeBlock(in + unit * kRows, kRows, out + unit, stride);
  }
}

inline Floats AddBias(const ExactLayer& layer, Floats sum, float bias) {
  const Floats z = sum + Vector::Splat(bias);
  return layer.relu ? exact::Relu<Vector>(z) : z;
}

void Activate(const ExactLayer& layer, const float* z, ptrdiff_t stride, float* out) {
  for (int unit = 0; unit < layer.outputs; unit += 16) {
    TransposeBlock(z + unit, stride, out + unit * kRows, kRows);
  }
  for (int unit = 0; unit < layer.outputs; ++unit) {
    for (int v = 0; v < kRowVectors; ++v) {
      float* const at = out + unit * kRows + v * kLanes;
      Vector::Store(at, AddBias(layer, Vector::Load(at), layer.bias[unit]));
    }
  }
}

// Chains of so many units at a time hide the latency of a multiply-add.
constexpr int kUnits = 8 / kRowVectors > 0 ? 8 / kRowVectors : 1;

// sum[u] = chain over i < count of weights[u * unit_step + i * step] * in[i], all rows.
template <int kCount>
inline void Chains(const float* weights, ptrdiff_t unit_step, ptrdiff_t step, int count,
                   const float* in, Floats (*sum)[kRowVectors]) {
  for (int u = 0; u < kCount; ++u) {
    for (int v = 0; v < kRowVectors; ++v) sum[u][v] = Floats{};
  }
  for (int i = 0; i < count; ++i, weights += step, in += kRows) {
#pragma GCC unroll 8
    for (int u = 0; u < kCount; ++u) {
      const Floats w = Vector::Splat(weights[u * unit_step]);
#pragma GCC unroll 4
      for (int v = 0; v < kRowVectors; ++v) {
        sum[u][v] = Vector::MulAdd(w, Vector::Load(in + v * kLanes), sum[u][v]);
      }
    }
  }
}

template <int kCount>
inline void ForwardUnits(const ExactLayer& layer, const float* in, int unit, float* out) {
  Floats sum[kCount][kRowVectors];
  Chains<kCount>(layer.weights + unit, 1, layer.outputs, layer.inputs, in, sum);
  for (int u = 0; u < kCount; ++u) {
    for (int v = 0; v < kRowVectors; ++v) {
      Vector::Store(out + (unit + u) * kRows + v * kLanes,
                    AddBias(layer, sum[u][v], layer.bias[unit + u]));
    }
  }
}

void Forward(const ExactLayer& layer, const float* in, float* out) {
  int unit = 0;
  for (; unit + kUnits <= layer.outputs; unit += kUnits) ForwardUnits<kUnits>(layer, in, unit, out);
  for (; unit + 2 <= layer.outputs; unit += 2) ForwardUnits<2>(layer, in, unit, out);
  for (; unit < layer.outputs; ++unit) ForwardUnits<1>(layer, in, unit, out);
}

template <int kCount>
inline void BackwardUnits(const ExactLayer& layer, const float* in, const float* delta, int unit,
                          float* delta_in) {
  Floats sum[kCount][kRowVectors];
  Chains<kCount>(layer.weights + ptrdiff_t{unit} * layer.outputs, layer.outputs, 1, layer.outputs,
                 delta, sum);
  for (int u = 0; u < kCount; ++u) {
    for (int v = 0; v < kRowVectors; ++v) {
      const ptrdiff_t at = (unit + u) * kRows + v * kLanes;
      Vector::Store(delta_in + at, exact::ReluGradient<Vector>(Vector::Load(in + at), sum[u][v]));
    }
  }
}

void Backward(const ExactLayer& layer, const float* in, const float* delta, float* delta_in) {
  int unit = 0;
  for (; unit + kUnits <= layer.inputs; unit += kUnits) {
    BackwardUnits<kUnits>(layer, in, delta, unit, delta_in);
  }
  for (; unit < layer.inputs; ++unit) BackwardUnits<1>(layer, in, delta, unit, delta_in);
}

void Softmax(int classes, const uint8_t* labels, float* logits, float* losses,
             int32_t* predictions) {
  for (int v = 0; v < kRowVectors; ++v) {
    const int row = v * kLanes;
    Ints label = {};
    for (int i = 0; i < kLanes; ++i) label[i] = labels[row + i];
    const exact::Softmax<Vector> result =
        exact::SoftmaxCrossEntropy<Vector>(logits + row, kRows, classes, label);
    Vector::Store(losses + row, result.loss);
    for (int i = 0; i < kLanes; ++i) {
      predictions[row + i] = static_cast<int32_t>(result.prediction[i]);
    }
  }
}

constexpr double kMagic = 0x1.8p52;  // see exact::Quantize
constexpr double kPerQuantum = 1.0 / exact::kQuantum;

// The bits of Quantize(x), with those of kMagic still in them.
inline Longs MagicQuanta(Doubles x) { return (Longs)(x * kPerQuantum + kMagic); }

inline uint64_t MagicBits() {
  const double magic = kMagic;
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &magic, sizeof bits);
  return bits;
}

// What one input's gradients come from: its non-zero factors of one micro-shard.
struct Factors {
  uint32_t mask;          // bit r: row r has one
  const uint8_t* pixels;  // of the rows, or
  const float* numbers;
};

template <bool kPixels>
inline Factors FactorsOf(const ExactGradient& g, int input, int shard) {
  const int row = shard * kRows;
  const int rows = g.rows - row < kRows ? g.rows - row : kRows;
  const uint32_t all = (1u << rows) - 1;
  if constexpr (kPixels) {
    const uint8_t* const pixels = g.pixels + input * g.pixel_stride + row;
    return {NonZeroBytes(pixels) & all, pixels, nullptr};
  } else {
    return {all, nullptr, g.factors + shard * g.factor_stride + ptrdiff_t{input} * kRows};
  }
}

// Sums of quanta of kVectors * kLanes gradients: of each vector the lower and the upper half.
template <int kVectors>
struct QuantaBlock {
  Longs low[kVectors];
  Longs high[kVectors];
};

// Adds the quanta of one micro-shard's chains, with the bits of kMagic in each. `worst` becomes the
// bits of the largest magnitude so far; those of infinities and NaN are above all others.
template <int kVectors, bool kPixels>
inline void AddShard(const ExactGradient& g, const Factors& factors, const float* delta,
                     QuantaBlock<kVectors>* quanta, Ints* worst) {
  Floats sum[kVectors];
#pragma GCC unroll 8
  for (int j = 0; j < kVectors; ++j) sum[j] = Floats{};
  for (uint32_t mask = factors.mask; mask != 0; mask &= mask - 1) {
    const ptrdiff_t r = __builtin_ctz(mask);
    const Floats x = Vector::Splat(kPixels ? g.values[factors.pixels[r]] : factors.numbers[r]);
    const float* const row = delta + r * g.delta_stride;
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      sum[j] = Vector::MulAdd(x, Vector::Load(row + j * kLanes), sum[j]);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < kVectors; ++j) {
    const Ints magnitude = (Ints)sum[j] & 0x7FFFFFFFu;
    *worst = (Ints)((SignedInts)magnitude > (SignedInts)*worst ? magnitude : *worst);
    Doubles low;
    Doubles high;
    Widen(sum[j], &low, &high);
    quanta->low[j] += MagicQuanta(low);
    quanta->high[j] += MagicQuanta(high);
  }
}

// `excess`: what the sums have too much. Of the columns of a block the first `valid` exist.
template <int kVectors>
inline void StoreQuanta(const QuantaBlock<kVectors>& quanta, uint64_t excess, int valid,
                        bool accumulate, int64_t* gradient) {
  const Longs surplus = static_cast<int64_t>(excess) - Longs{};
  int64_t rest[kVectors * kLanes];
  const bool is_whole = valid >= kVectors * kLanes;
  int64_t* const out = is_whole ? gradient : rest;
#pragma GCC unroll 8
  for (int j = 0; j < 2 * kVectors; ++j) {
    UnalignedLongs* const at = reinterpret_cast<UnalignedLongs*>(out + j * kHalf);
    const Longs sum = (j % 2 == 0 ? quanta.low[j / 2] : quanta.high[j / 2]) - surplus;
    *at = accumulate && is_whole ? *at + sum : sum;
  }
  if (is_whole) return;
  for (int c = 0; c < valid; ++c) {
    // Unsigned: what is not representable may be anything, and wrap.
    const auto before = static_cast<uint64_t>(accumulate ? gradient[c] : 0);
    gradient[c] = static_cast<int64_t>(static_cast<uint64_t>(rest[c]) + before);
  }
}

template <int kVectors, bool kPixels>
void GradientColumns(const ExactGradient& g, int column, Ints* worst) {
  const int shards = (g.rows + kRows - 1) / kRows;
  const uint64_t magic = MagicBits();
  for (int input = 0; input < g.inputs; ++input) {
    QuantaBlock<kVectors> quanta;
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) quanta.low[j] = quanta.high[j] = Longs{};
    uint64_t excess = 0;
    for (int shard = 0; shard < shards; ++shard) {
      const Factors factors = FactorsOf<kPixels>(g, input, shard);
      if (factors.mask == 0) continue;
      AddShard<kVectors, kPixels>(g, factors, g.delta + shard * kRows * g.delta_stride + column,
                                  &quanta, worst);
      excess += magic;
    }
    if (excess == 0 && g.accumulate) continue;
    StoreQuanta<kVectors>(quanta, excess, g.outputs - column, g.accumulate,
                          g.gradient + ptrdiff_t{input} * g.outputs + column);
  }
}

template <bool kPixels>
bool GradientOf(const ExactGradient& g) {
  Ints worst = {};
  int column = 0;
  for (; column + kBlockVectors * kLanes <= g.outputs; column += kBlockVectors * kLanes) {
    GradientColumns<kBlockVectors, kPixels>(g, column, &worst);
  }
  for (; column < g.outputs; column += kLanes) GradientColumns<1, kPixels>(g, column, &worst);
  bool all_fit = true;
  for (int i = 0; i < kLanes; ++i) {
    all_fit = all_fit && exact::IsRepresentable(exact::One::FromBits(worst[i]));
  }
  return all_fit;
}

bool Gradient(const ExactGradient& g) {
  return g.pixels != nullptr ? GradientOf<true>(g) : GradientOf<false>(g);
}

inline Longs LoadLongs(const int64_t* p) { return *reinterpret_cast<const UnalignedLongs*>(p); }

inline Floats Mean(const int64_t* quanta, double scale) {
  return Narrow(ToDoubles(LoadLongs(quanta)) * scale, ToDoubles(LoadLongs(quanta + kHalf)) * scale);
}

// Calls update(mean gradient, index into the arrays, w, m, v) for each vector; for the last few
// numbers through arrays of their own: no second formula for them.
template <typename Update>
inline void ForEachMean(const ExactUpdate& u, const Update& update) {
  size_t i = 0;
  for (; i + kLanes <= u.count; i += kLanes) {
    update(Mean(u.gradient + i, u.mean_scale), u.parameters + i, u.first_moment + i,
           u.second_moment + i);
  }
  if (i == u.count) return;
  int64_t quanta[kLanes] = {};
  float rest[3][kLanes] = {};
  float* const arrays[3] = {u.parameters, u.first_moment, u.second_moment};
  const size_t left = u.count - i;
  for (size_t j = 0; j < left; ++j) quanta[j] = u.gradient[i + j];
  for (int a = 0; a < 3; ++a) {
    for (size_t j = 0; j < left; ++j) rest[a][j] = arrays[a][i + j];
  }
  update(Mean(quanta, u.mean_scale), rest[0], rest[1], rest[2]);
  for (int a = 0; a < 3; ++a) {
    for (size_t j = 0; j < left; ++j) arrays[a][i + j] = rest[a][j];
  }
}

void Adam(const ExactUpdate& update, const exact::AdamFactors& factors) {
  ForEachMean(update, [&factors](Floats g, float* w, float* m, float* v) {
    exact::Adam<Vector>(g, factors, w, m, v);
  });
}

void Sgd(const ExactUpdate& update, float rate) {
  ForEachMean(update, [rate](Floats g, float* w, float* /*m*/, float* /*v*/) {
    exact::Sgd<Vector>(g, rate, w);
  });
}

constexpr ExactKernels MakeExactKernels(const char* name) {
  return ExactKernels{name,     MulAddAll, TransposeBytes, MultiplyPixels, Activate, Forward,
                      Backward, Softmax,   ToRows,         Gradient,       Adam,     Sgd};
}

}  // namespace
}  // namespace ringmaster
