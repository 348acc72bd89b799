// kernels/exact.h against the mathematical functions in double, and every table of exact kernels
// against the same loops written with one number at a time: to the bit, at odd sizes.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/exact_kernels.h"
#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/vector_kernels.h"
#include "kernels/exact.h"

namespace ringmaster {
namespace {

using exact::One;

constexpr int kRows = static_cast<int>(kMicroShard);

float FloatOf(uint32_t bits) { return std::bit_cast<float>(bits); }

// The distance of `got` from `want` in units in the last place of a float near `want`.
double UlpError(float got, double want) {
  const float near = static_cast<float>(want);
  const double ulp = double{std::nextafterf(near, INFINITY)} - double{near};
  return std::abs(double{got} - want) / ulp;
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}

  uint32_t Bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }
  float Between(float low, float high) {
    return low + (high - low) * static_cast<float>(Bits() >> 8) * 0x1p-24f;
  }
  std::vector<float> Floats(size_t count, float low = -1, float high = 1) {
    std::vector<float> floats(count);
    for (float& x : floats) x = Between(low, high);
    return floats;
  }

 private:
  uint64_t state_;
};

// Bit by bit, so that -0 is not 0 and a NaN is one.
template <typename T>
void ExpectSameBits(const std::vector<T>& got, const std::vector<T>& want, const char* what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::memcmp(&got[i], &want[i], sizeof(T)), 0)
        << what << " " << i << ": " << got[i] << ", want " << want[i];
  }
}

TEST(ExactExpTest, IsWithinItsBoundOnADenseGrid) {
  double worst = 0;
  // Every 97th float from -0 to -87.
  for (uint32_t bits = 0x80000000u; FloatOf(bits) >= -87.0f; bits += 97) {
    const float x = FloatOf(bits);
    worst = std::max(worst, UlpError(exact::Exp<One>(x), std::exp(double{x})));
  }
  RecordProperty("worst_ulp", std::to_string(worst));
  EXPECT_LT(worst, 1.0);
  EXPECT_GT(worst, 0.5);
}

TEST(ExactExpTest, Edges) {
  EXPECT_EQ(exact::Exp<One>(0.0f), 1.0f);
  EXPECT_EQ(exact::Exp<One>(-0.0f), 1.0f);
  EXPECT_GT(exact::Exp<One>(-87.0f), 0.0f);
  EXPECT_EQ(exact::Exp<One>(-87.1f), 0.0f);
  EXPECT_EQ(exact::Exp<One>(-INFINITY), 0.0f);
  EXPECT_TRUE(std::isnan(exact::Exp<One>(NAN)));
}

TEST(ExactLogTest, IsWithinItsBoundOnADenseGrid) {
  double worst = 0;
  for (uint32_t bits = 0; FloatOf(bits) < 0x1p24f; bits += 97) {
    const float x = FloatOf(bits);
    if (x < std::numeric_limits<float>::min()) continue;
    worst = std::max(worst, UlpError(exact::LogOnePlus<One>(x), std::log1p(double{x})));
  }
  RecordProperty("worst_ulp", std::to_string(worst));
  EXPECT_LT(worst, 1.0);
  EXPECT_GT(worst, 0.5);
}

TEST(ExactLogTest, Edges) {
  EXPECT_EQ(exact::LogOnePlus<One>(0.0f), 0.0f);
  EXPECT_EQ(exact::LogOnePlus<One>(1e-30f), 1e-30f);
  EXPECT_TRUE(std::isnan(exact::LogOnePlus<One>(NAN)));
}

TEST(ExactQuantumTest, RoundsToTheNearestTiesToEven) {
  EXPECT_EQ(exact::Quantize(0.0f), 0);
  EXPECT_EQ(exact::Quantize(-0.0f), 0);
  EXPECT_EQ(exact::Quantize(0x1p-40f), 1);
  EXPECT_EQ(exact::Quantize(-0x1p-40f), -1);
  EXPECT_EQ(exact::Quantize(0x1p-41f), 0);
  EXPECT_EQ(exact::Quantize(3 * 0x1p-41f), 2);
  EXPECT_EQ(exact::Quantize(-5 * 0x1p-41f), -2);
  EXPECT_EQ(exact::Quantize(1.0f), int64_t{1} << 40);
  Random random(1);
  for (int i = 0; i < 1'000'000; ++i) {
    const float x = FloatOf(random.Bits());
    if (!exact::IsRepresentable(x)) continue;
    ASSERT_EQ(exact::Quantize(x), std::llrint(double{x} * 0x1p40)) << x;
  }
}

TEST(ExactQuantumTest, WhatCannotBeSummedIsNotRepresentable) {
  const float largest = std::nextafterf(exact::kGradientLimit, 0.0f);
  EXPECT_TRUE(exact::IsRepresentable(largest));
  EXPECT_TRUE(exact::IsRepresentable(-largest));
  EXPECT_FALSE(exact::IsRepresentable(exact::kGradientLimit));
  EXPECT_FALSE(exact::IsRepresentable(-exact::kGradientLimit));
  EXPECT_FALSE(exact::IsRepresentable(INFINITY));
  EXPECT_FALSE(exact::IsRepresentable(-INFINITY));
  EXPECT_FALSE(exact::IsRepresentable(NAN));
  // As many of the largest as there may be do not overflow.
  EXPECT_EQ(exact::Quantize(largest), std::llrint(double{largest} * 0x1p40));
  EXPECT_LT(exact::Quantize(largest),
            std::numeric_limits<int64_t>::max() / int64_t{kMostMicroShards});
}

TEST(ExactAdamTest, ItsStepSizeIsTheFormula) {
  EXPECT_EQ(exact::Power(0.5, 10), 0x1p-10);
  EXPECT_EQ(exact::Power(3.0, 5), 243.0);
  EXPECT_EQ(exact::Power(0.9, 0), 1.0);
  for (const uint64_t t : {1u, 2u, 3u, 100u, 2814u, 1'000'000u}) {
    const double beta1 = 0.9f;
    const double beta2 = 0.999f;
    const double want =
        1e-3f * std::sqrt(1 - std::pow(beta2, double(t))) / (1 - std::pow(beta1, double(t)));
    EXPECT_NEAR(exact::AdamAlpha(1e-3f, 0.9f, 0.999f, t), want, 1e-7 * want) << t;
  }
}

class ExactKernelsTest : public testing::TestWithParam<const ExactKernels*> {
 protected:
  const ExactKernels& kernels() const { return *GetParam(); }
};

// Everything that can go wrong with a fused multiply-add that is put together from other
// operations: cancellation, ties, subnormal results, infinities.
TEST_P(ExactKernelsTest, MulAddRoundsOnce) {
  Random random(2);
  std::vector<float> a;
  std::vector<float> b;
  std::vector<float> c;
  const auto add = [&](float x, float y, float z) {
    a.push_back(x);
    b.push_back(y);
    c.push_back(z);
  };
  for (int i = 0; i < 300'000; ++i) {
    const float x = FloatOf(random.Bits());
    const float y = FloatOf(random.Bits());
    add(x, y, FloatOf(random.Bits()));
    // Near numbers: the sum of product and addend cancels, or ends in a tie.
    const float u = random.Between(-2, 2);
    const float v = random.Between(-2, 2);
    add(u, v, -u * v);
    add(u, v, u * v * (1 + 0x1p-23f));
    add(u, v, FloatOf(std::bit_cast<uint32_t>(u * v) + (12u << 23)));
    add(u * 0x1p-70f, v * 0x1p-70f, random.Between(-1, 1) * 0x1p-140f);
    // A product half way between two floats, and an addend too small for a double to see both:
    // rounding twice loses which side the sum is on.
    add(1 + 0x1p-12f, 1 + 0x1p-12f, std::ldexp(u, -static_cast<int>(random.Bits() % 80) - 20));
    add(1 + 0x1p-12f, -1 - 0x1p-12f, std::ldexp(u, -static_cast<int>(random.Bits() % 80) - 20));
  }
  const float special[] = {0.0f, -0.0f, 1.0f, -1.0f, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-45f};
  for (const float x : special) {
    for (const float y : special) {
      for (const float z : special) add(x, y, z);
    }
  }
  std::vector<float> got(a.size());
  kernels().mul_add(a.data(), b.data(), c.data(), a.size(), got.data());
  for (size_t i = 0; i < a.size(); ++i) {
    const float want = std::fma(a[i], b[i], c[i]);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(got[i])) << a[i] << " * " << b[i] << " + " << c[i];
      continue;
    }
    ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want))
        << std::hexfloat << a[i] << " * " << b[i] << " + " << c[i] << " = " << want << ", got "
        << got[i];
  }
}

std::vector<uint8_t> SparsePixels(Random& random, size_t count) {
  std::vector<uint8_t> pixels(count);
  for (uint8_t& p : pixels) p = random.Bits() % 3 == 0 ? static_cast<uint8_t>(random.Bits()) : 0;
  return pixels;
}

std::vector<float> PixelValues() {
  std::vector<float> values(256);
  for (int i = 0; i < 256; ++i) values[i] = static_cast<float>(i) * exact::kPixelScale;
  return values;
}

TEST_P(ExactKernelsTest, PixelProductsAreChainsOverTheNonZeroOnes) {
  Random random(3);
  const std::vector<float> values = PixelValues();
  for (const int depth : {1, 31, 32, 99}) {
    for (const int columns : {16, 48, 144}) {
      constexpr int kCount = 5;
      const ptrdiff_t stride = (depth + kPixelPadding - 1) / kPixelPadding * kPixelPadding;
      std::vector<uint8_t> pixels = SparsePixels(random, kCount * stride);
      for (int r = 0; r < kCount; ++r) {
        std::fill(&pixels[r * stride] + depth, &pixels[r * stride] + stride, uint8_t{0});
      }
      const std::vector<float> b = random.Floats(depth * columns);
      std::vector<float> got(kCount * columns, NAN);
      std::vector<float> want(kCount * columns);
      PixelProduct product;
      product.pixels = pixels.data();
      product.pixel_stride = stride;
      product.values = values.data();
      product.b = b.data();
      product.b_stride = columns;
      product.c = got.data();
      product.c_stride = columns;
      product.rows = kCount;
      product.depth = depth;
      product.columns = columns;
      kernels().multiply_pixels(product);
      for (int i = 0; i < kCount * columns; ++i) {
        for (int k = 0; k < depth; ++k) {
          const uint8_t pixel = pixels[i / columns * stride + k];
          if (pixel == 0) continue;
          want[i] = One::MulAdd(values[pixel], b[k * columns + i % columns], want[i]);
        }
      }
      ExpectSameBits(got, want, "product");
    }
  }
}

struct LayerCase {
  int inputs;
  int outputs;
};
constexpr LayerCase kLayers[] = {{1, 1}, {3, 2}, {17, 10}, {128, 10}, {33, 47}, {16, 16}};

TEST_P(ExactKernelsTest, ForwardIsAChainOverTheInputsAndThenTheBias) {
  Random random(4);
  for (const auto& [inputs, outputs] : kLayers) {
    for (const bool relu : {false, true}) {
      const std::vector<float> weights = random.Floats(inputs * outputs);
      const std::vector<float> bias = random.Floats(outputs);
      const std::vector<float> in = random.Floats(inputs * kRows);
      const ExactLayer layer{weights.data(), bias.data(), inputs, outputs, relu};
      std::vector<float> got(outputs * kRows, NAN);
      std::vector<float> want(outputs * kRows);
      kernels().forward(layer, in.data(), got.data());
      for (int i = 0; i < outputs * kRows; ++i) {
        for (int k = 0; k < inputs; ++k) {
          want[i] =
              One::MulAdd(weights[k * outputs + i / kRows], in[k * kRows + i % kRows], want[i]);
        }
        want[i] = want[i] + bias[i / kRows];
        if (relu) want[i] = exact::Relu<One>(want[i]);
      }
      ExpectSameBits(got, want, "unit");
    }
  }
}

TEST_P(ExactKernelsTest, BackwardIsAChainOverTheOutputsWhereTheUnitIsActive) {
  Random random(5);
  for (const auto& [inputs, outputs] : kLayers) {
    const std::vector<float> weights = random.Floats(inputs * outputs);
    const std::vector<float> delta = random.Floats(outputs * kRows);
    std::vector<float> in = random.Floats(inputs * kRows);
    for (float& x : in) x = std::max(x, 0.0f);
    const ExactLayer layer{weights.data(), nullptr, inputs, outputs, true};
    std::vector<float> got(inputs * kRows, NAN);
    std::vector<float> want(inputs * kRows);
    kernels().backward(layer, in.data(), delta.data(), got.data());
    for (int i = 0; i < inputs * kRows; ++i) {
      for (int j = 0; j < outputs; ++j) {
        want[i] =
            One::MulAdd(weights[i / kRows * outputs + j], delta[j * kRows + i % kRows], want[i]);
      }
      want[i] = exact::ReluGradient<One>(in[i], want[i]);
    }
    ExpectSameBits(got, want, "delta");
  }
}

TEST_P(ExactKernelsTest, ActivateTurnsRowsIntoLanesAndToRowsBack) {
  Random random(6);
  for (const int units : {1, 10, 16, 33}) {
    const ptrdiff_t stride = (units + kExactPadding - 1) / kExactPadding * kExactPadding;
    const std::vector<float> z = random.Floats(kRows * stride);
    const std::vector<float> bias = random.Floats(units);
    std::vector<float> lanes(stride * kRows);
    std::vector<float> rows(kRows * stride, NAN);
    kernels().activate({nullptr, bias.data(), 0, units, true}, z.data(), stride, lanes.data());
    kernels().to_rows(lanes.data(), static_cast<int>(stride), stride, rows.data());
    for (int unit = 0; unit < units; ++unit) {
      for (int row = 0; row < kRows; ++row) {
        const float want = exact::Relu<One>(z[row * stride + unit] + bias[unit]);
        ASSERT_EQ(lanes[unit * kRows + row], want);
        ASSERT_EQ(rows[row * stride + unit], want);
      }
    }
  }
}

TEST_P(ExactKernelsTest, SoftmaxIsTheSameForALaneAsForOne) {
  Random random(7);
  for (const int classes : {1, 2, 10, 17, 256}) {
    for (const float range : {0.01f, 5.0f, 300.0f}) {
      std::vector<float> got = random.Floats(classes * kRows, -range, range);
      if (classes > 2) got[2 * kRows + 3] = NAN;
      if (classes > 1) got[kRows + 5] = got[5];  // a draw: the first class wins
      std::vector<float> want = got;
      uint8_t labels[kRows];
      for (uint8_t& label : labels) label = static_cast<uint8_t>(random.Bits() % classes);
      std::vector<float> losses(kRows);
      std::vector<int32_t> predictions(kRows);
      kernels().softmax(classes, labels, got.data(), losses.data(), predictions.data());
      for (int row = 0; row < kRows; ++row) {
        const auto one = exact::SoftmaxCrossEntropy<One>(&want[row], kRows, classes, labels[row]);
        EXPECT_EQ(predictions[row], static_cast<int32_t>(one.prediction));
        if (std::isnan(one.loss)) {
          EXPECT_TRUE(std::isnan(losses[row])) << row;
          for (int c = 0; c < classes; ++c) want[c * kRows + row] = got[c * kRows + row] = 0;
        } else {
          EXPECT_EQ(losses[row], one.loss) << row;
        }
      }
      ExpectSameBits(got, want, "delta");
    }
  }
}

struct GradientCase {
  int rows;
  int inputs;
  int outputs;
};

// The gradient of `g`, a number at a time.
std::vector<int64_t> GradientOneByOne(const ExactGradient& g, std::vector<int64_t> start) {
  std::vector<int64_t> sums = std::move(start);
  for (int i = 0; i < g.inputs * g.outputs; ++i) {
    const int input = i / g.outputs;
    for (int first = 0; first < g.rows; first += kRows) {
      float chain = 0;
      for (int row = first; row < std::min(first + kRows, g.rows); ++row) {
        const float factor =
            g.pixels != nullptr
                ? g.values[g.pixels[input * g.pixel_stride + row]]
                : g.factors[first / kRows * g.factor_stride + input * kRows + row % kRows];
        if (factor == 0) continue;
        chain = One::MulAdd(factor, g.delta[row * g.delta_stride + i % g.outputs], chain);
      }
      sums[i] += exact::Quantize(chain);
    }
  }
  return sums;
}

TEST_P(ExactKernelsTest, GradientsAreSumsOfTheMicroShardsQuanta) {
  Random random(8);
  const std::vector<float> values = PixelValues();
  for (const auto& [rows, inputs, outputs] :
       {GradientCase{1, 1, 1}, GradientCase{16, 3, 10}, GradientCase{17, 5, 128},
        GradientCase{128, 9, 150}, GradientCase{90, 4, 33}}) {
    const int shards = (rows + kRows - 1) / kRows;
    const ptrdiff_t stride = (outputs + kExactPadding - 1) / kExactPadding * kExactPadding;
    std::vector<uint8_t> pixels = SparsePixels(random, inputs * shards * kRows);
    for (int k = 0; k < inputs; ++k) {
      std::fill(&pixels[k * shards * kRows] + rows, &pixels[k * shards * kRows] + shards * kRows,
                uint8_t{0});
    }
    pixels[rows - 1] = 200;  // so that the last sample's delta counts
    const std::vector<float> factors = random.Floats(shards * inputs * kRows);
    std::vector<float> delta = random.Floats(shards * kRows * stride, -1e-3f, 1e-3f);
    for (const bool from_pixels : {true, false}) {
      ExactGradient g;
      if (from_pixels) g.pixels = pixels.data();
      g.pixel_stride = shards * kRows;
      g.values = values.data();
      g.factors = factors.data();
      g.factor_stride = inputs * kRows;
      g.delta = delta.data();
      g.delta_stride = stride;
      g.rows = rows;
      g.inputs = inputs;
      g.outputs = outputs;
      std::vector<int64_t> got(inputs * outputs, 7);
      const std::vector<int64_t> zeros(inputs * outputs);
      g.gradient = got.data();
      EXPECT_TRUE(kernels().gradient(g));
      ExpectSameBits(got, GradientOneByOne(g, zeros), "gradient");
      g.accumulate = true;
      EXPECT_TRUE(kernels().gradient(g));
      ExpectSameBits(got, GradientOneByOne(g, GradientOneByOne(g, zeros)), "accumulated");

      for (const float bad : {2048.0f, -4e9f, INFINITY, NAN}) {
        const size_t at = (rows - 1) * stride + outputs - 1;
        const float good = std::exchange(delta[at], bad * (from_pixels ? 300.0f : 1e6f));
        g.accumulate = false;
        EXPECT_FALSE(kernels().gradient(g)) << bad;
        delta[at] = good;
      }
    }
  }
}

TEST_P(ExactKernelsTest, UpdatesAreTheSameForALaneAsForOne) {
  Random random(9);
  for (const size_t count : {size_t{1}, size_t{15}, size_t{16}, size_t{101}}) {
    std::vector<int64_t> quanta(count);
    for (int64_t& q : quanta) {
      // Also those that a double cannot hold.
      const uint64_t bits = uint64_t{random.Bits()} << 32 | random.Bits();
      q = static_cast<int64_t>(bits) >> (random.Bits() % 50);
    }
    std::vector<float> state[3] = {random.Floats(count), random.Floats(count),
                                   random.Floats(count, 0, 1e-3f)};
    std::vector<float> want[3] = {state[0], state[1], state[2]};
    ExactUpdate update;
    update.count = count;
    update.gradient = quanta.data();
    update.mean_scale = exact::MeanScale(96);
    update.parameters = state[0].data();
    update.first_moment = state[1].data();
    update.second_moment = state[2].data();
    const auto factors = exact::MakeAdamFactors(1e-3f, 0.9f, 0.999f, 1e-7f, 3);
    kernels().adam(update, factors);
    for (size_t i = 0; i < count; ++i) {
      const float g = exact::MeanGradient(quanta[i], update.mean_scale);
      exact::Adam<One>(g, factors, &want[0][i], &want[1][i], &want[2][i]);
    }
    for (int a = 0; a < 3; ++a) ExpectSameBits(state[a], want[a], "Adam");
    kernels().sgd(update, 0.01f);
    for (size_t i = 0; i < count; ++i) {
      exact::Sgd<One>(exact::MeanGradient(quanta[i], update.mean_scale), 0.01f, &want[0][i]);
    }
    for (int a = 0; a < 3; ++a) ExpectSameBits(state[a], want[a], "SGD");
  }
}

INSTANTIATE_TEST_SUITE_P(All, ExactKernelsTest, testing::ValuesIn(AvailableExactKernels()),
                         [](const testing::TestParamInfo<const ExactKernels*>& info) {
                           std::string name = info.param->name;
                           name.erase(std::remove(name.begin(), name.end(), '-'), name.end());
                           return name;
                         });

}  // namespace
}  // namespace ringmaster
