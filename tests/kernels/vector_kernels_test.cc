// The CPU's vector kernels: one suite for every instruction set that this CPU has.

#include "kernels/cpu/vector_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/instruction_set.h"

namespace ringmaster {
namespace {

using testing::Each;
using testing::ElementsAre;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

const VectorKernels* FindKernels(const std::string& name) {
  for (const VectorKernels* kernels : AvailableVectorKernels()) {
    if (name == kernels->name) return kernels;
  }
  return nullptr;
}

class VectorKernelsTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    kernels_ = FindKernels(GetParam());
    if (kernels_ == nullptr) GTEST_SKIP() << "this CPU has no " << GetParam();
  }

  std::vector<float> RandomFloats(size_t count, float low, float high) {
    std::uniform_real_distribution<float> distribution(low, high);
    std::vector<float> values(count);
    for (float& value : values) value = distribution(random_);
    return values;
  }

  std::vector<uint8_t> RandomPixels(size_t count, double density) {
    std::bernoulli_distribution is_set(density);
    std::uniform_int_distribution<int> value(1, 255);
    std::vector<uint8_t> pixels(count);
    for (uint8_t& pixel : pixels) pixel = is_set(random_) ? value(random_) : 0;
    return pixels;
  }

  const VectorKernels* kernels_ = nullptr;
  std::mt19937 random_{7};
};

TEST_P(VectorKernelsTest, PixelsAreScaledExactly) {
  for (const size_t count : {0, 1, 17, 256}) {
    std::vector<uint8_t> pixels(count);
    for (size_t i = 0; i < count; ++i) pixels[i] = static_cast<uint8_t>(i);
    std::vector<float> out(count + 1, -1.0f);
    kernels_->scale_pixels(pixels.data(), count, out.data());
    for (size_t i = 0; i < count; ++i) {
      ASSERT_EQ(out[i], static_cast<float>(i) * (1.0f / 255.0f)) << i;
    }
    EXPECT_EQ(out[count], -1.0f);
  }
}

TEST_P(VectorKernelsTest, BytesAreTransposed) {
  for (const auto& [rows, columns] : {std::pair{1, 1}, {16, 16}, {33, 48}, {128, 784}}) {
    const int padded_rows = (rows + 15) / 16 * 16;
    const int padded_columns = (columns + 15) / 16 * 16;
    const std::vector<uint8_t> in = RandomPixels(padded_rows * padded_columns, 0.9);
    std::vector<uint8_t> out(in.size());
    kernels_->transpose_bytes(in.data(), padded_columns, rows, columns, out.data(), padded_rows);
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < columns; ++c) {
        ASSERT_EQ(out[c * padded_rows + r], in[r * padded_columns + c]) << r << ", " << c;
      }
    }
  }
}

// The product with small integers is exact whatever the order: no tolerance.
TEST_P(VectorKernelsTest, PixelProductsAreExactOnIntegers) {
  std::vector<float> values(256);
  for (int i = 0; i < 256; ++i) values[i] = static_cast<float>(i);
  for (const int rows : {1, 5, 128}) {
    for (const int depth : {1, 31, 33, 200}) {
      for (const int columns : {16, 48, 128, 144}) {
        for (const bool accumulate : {false, true}) {
          SCOPED_TRACE(testing::Message() << rows << " x " << depth << " x " << columns);
          const int pixel_stride = (depth + kPixelPadding - 1) / kPixelPadding * kPixelPadding;
          std::vector<uint8_t> pixels = RandomPixels(rows * pixel_stride, 0.3);
          for (int r = 0; r < rows; ++r) {
            std::fill_n(&pixels[r * pixel_stride] + depth, pixel_stride - depth, uint8_t{0});
          }
          const int b_stride = columns + 3;
          std::vector<float> b = RandomFloats(depth * b_stride, -9, 9);
          for (float& value : b) value = std::round(value);
          const int c_stride = columns + 5;
          std::vector<float> c(rows * c_stride, 2.0f);
          PixelProduct product;
          product.pixels = pixels.data();
          product.pixel_stride = pixel_stride;
          product.values = values.data();
          product.b = b.data();
          product.b_stride = b_stride;
          product.c = c.data();
          product.c_stride = c_stride;
          product.rows = rows;
          product.depth = depth;
          product.columns = columns;
          product.accumulate = accumulate;
          kernels_->multiply_pixels(product);
          for (int r = 0; r < rows; ++r) {
            for (int n = 0; n < c_stride; ++n) {
              double want = n >= columns || accumulate ? 2 : 0;
              for (int k = 0; n < columns && k < depth; ++k) {
                want += pixels[r * pixel_stride + k] * double{b[k * b_stride + n]};
              }
              ASSERT_EQ(c[r * c_stride + n], want) << r << ", " << n;
            }
          }
        }
      }
    }
  }
}

TEST_P(VectorKernelsTest, BiasAndReluPassNanOnAndLeaveThePaddingAlone) {
  constexpr int kRows = 3;
  constexpr int kColumns = 37;
  constexpr int kStride = 48;
  const std::vector<float> bias = RandomFloats(kColumns, -1, 1);
  std::vector<float> x = RandomFloats(kRows * kStride, -1, 1);
  x[kStride + 2] = x[kStride + 36] = kNan;
  const std::vector<float> before = x;
  kernels_->bias_relu(bias.data(), kRows, kColumns, kStride, x.data());
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kStride; ++c) {
      const int i = r * kStride + c;
      if (c >= kColumns) {
        ASSERT_EQ(x[i], before[i]);
      } else if (std::isnan(before[i])) {
        ASSERT_TRUE(std::isnan(x[i])) << r << ", " << c;
      } else {
        ASSERT_EQ(x[i], std::max(0.0f, before[i] + bias[c])) << r << ", " << c;
      }
    }
  }
}

TEST_P(VectorKernelsTest, ReluGradientKeepsWhatWasActive) {
  constexpr int kRows = 3;
  constexpr int kColumns = 21;
  constexpr int kStride = 32;
  std::vector<float> activation = RandomFloats(kRows * kStride, -1, 1);
  for (float& a : activation) a = std::max(a, 0.0f);
  std::vector<float> delta = RandomFloats(kRows * kStride, -1, 1);
  const std::vector<float> before = delta;
  kernels_->relu_gradient(activation.data(), kRows, kColumns, kStride, delta.data());
  for (int i = 0; i < kRows * kStride; ++i) {
    const bool is_kept = i % kStride >= kColumns || activation[i] > 0;
    ASSERT_EQ(delta[i], is_kept ? before[i] : 0.0f) << i;
  }
}

TEST_P(VectorKernelsTest, ColumnSumsAddInDouble) {
  constexpr int kColumns = 19;
  std::vector<float> x(2 * 24, 1e-9f);
  std::fill_n(x.begin(), 24, 1.0f);
  std::vector<double> sums(kColumns + 1, 5.0);
  kernels_->add_column_sums(x.data(), 2, kColumns, 24, sums.data());
  EXPECT_EQ(sums[kColumns], 5.0);
  sums.pop_back();
  EXPECT_THAT(sums, Each(5.0 + 1.0 + double{1e-9f}));
}

// Runs one row and keeps its outputs.
struct SoftmaxRow {
  std::vector<float> gradient;
  float loss = 0;
  int32_t prediction = -1;
};

SoftmaxRow RunSoftmax(const VectorKernels& kernels, const std::vector<float>& logits,
                      uint8_t label) {
  const int classes = static_cast<int>(logits.size());
  SoftmaxRow row;
  row.gradient = logits;
  row.gradient.resize((classes + kLogitPadding - 1) / kLogitPadding * kLogitPadding, 99.0f);
  const std::vector<float> bias(classes);
  SoftmaxBatch batch;
  batch.logits = row.gradient.data();
  batch.bias = bias.data();
  batch.labels = &label;
  batch.losses = &row.loss;
  batch.predictions = &row.prediction;
  batch.rows = 1;
  batch.classes = classes;
  batch.stride = static_cast<ptrdiff_t>(row.gradient.size());
  kernels.softmax_cross_entropy(batch);
  return row;
}

TEST_P(VectorKernelsTest, SoftmaxCrossEntropyMatchesDouble) {
  for (const int classes : {1, 2, 10, 16, 17, 256}) {
    for (const float spread : {0.01f, 1.0f, 20.0f, 80.0f, 1e4f}) {
      SCOPED_TRACE(testing::Message() << classes << " classes, logits to " << spread);
      const std::vector<float> logits = RandomFloats(classes, -spread, spread);
      const auto label = static_cast<uint8_t>(random_() % classes);
      const SoftmaxRow row = RunSoftmax(*kernels_, logits, label);

      const auto best = std::max_element(logits.begin(), logits.end());
      // The kernels subtract the largest logit in fp32, as everybody does.
      const auto exponential = [&](float logit) { return std::exp(double{logit - *best}); };
      double others = 0;
      for (auto it = logits.begin(); it != logits.end(); ++it) {
        if (it != best) others += exponential(*it);
      }
      const double loss = std::log1p(others) + *best - logits[label];
      EXPECT_NEAR(row.loss, loss, 5e-7 * loss + 1e-37);
      EXPECT_EQ(row.prediction, best - logits.begin());
      for (int c = 0; c < classes; ++c) {
        const double p = exponential(logits[c]) / (1 + others);
        EXPECT_NEAR(row.gradient[c], p - (c == label ? 1 : 0),
                    4e-7 * p + 1e-37 + 6e-8 * (c == label))
            << c;
      }
      for (size_t c = classes; c < row.gradient.size(); ++c) EXPECT_EQ(row.gradient[c], 0);
    }
  }
}

TEST_P(VectorKernelsTest, ATinyLossKeepsItsDigits) {
  const SoftmaxRow row = RunSoftmax(*kernels_, {0, 30, 0}, 1);
  const double others = 2 * std::exp(-30.0);
  EXPECT_NEAR(row.loss, others, 1e-6 * others);
  EXPECT_NEAR(row.gradient[1], -others, 1e-6 * others);
}

TEST_P(VectorKernelsTest, TheFirstLargestLogitIsPredicted) {
  std::vector<float> logits(40, -1.0f);
  logits[11] = logits[12] = logits[39] = 3.0f;
  EXPECT_EQ(RunSoftmax(*kernels_, logits, 0).prediction, 11);
  EXPECT_EQ(RunSoftmax(*kernels_, std::vector<float>(10, 0.5f), 3).prediction, 0);
}

TEST_P(VectorKernelsTest, NonFiniteLogitsGiveNonFiniteLosses) {
  for (const float bad : {kNan, kInfinity}) {
    for (const int place : {0, 5, 18}) {
      std::vector<float> logits(20, 1.0f);
      logits[place] = bad;
      EXPECT_FALSE(std::isfinite(RunSoftmax(*kernels_, logits, 2).loss)) << bad << " at " << place;
    }
  }
  EXPECT_FALSE(std::isfinite(RunSoftmax(*kernels_, {1, -kInfinity, 2}, 1).loss));
  EXPECT_TRUE(std::isfinite(RunSoftmax(*kernels_, {1, -kInfinity, 2}, 0).loss));
}

// Distance in representable values.
int64_t Ulps(float a, float b) {
  const auto key = [](float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits < 0 ? -int64_t{bits & 0x7fffffff} : int64_t{bits};
  };
  return std::abs(key(a) - key(b));
}

// With no gradient, beta1 = beta2 = 0 left out and w = 0, the update shows the direction alone.
TEST_P(VectorKernelsTest, AdamsDirectionIsWithinTwoUlps) {
  std::vector<float> v;
  for (float exponent = -44; exponent < 10; exponent += 0.0137f) {
    v.push_back(std::pow(10.0f, exponent));
  }
  v.push_back(0.0f);
  for (const float epsilon : {1e-7f, 1e-3f}) {
    std::vector<float> m = RandomFloats(v.size(), 0.5f, 2.0f);
    std::vector<float> w(v.size());
    const std::vector<float> gradient(v.size());
    const std::vector<float> m_before = m;
    std::vector<float> v_after = v;
    AdamUpdate update;
    update.count = v.size();
    update.gradient = gradient.data();
    update.parameters = w.data();
    update.first_moment = m.data();
    update.second_moment = v_after.data();
    update.alpha = -1.0f;
    update.epsilon = epsilon;
    kernels_->adam(update);
    EXPECT_EQ(m, m_before);
    EXPECT_EQ(v_after, v);
    int64_t worst = 0;
    for (size_t i = 0; i < v.size(); ++i) {
      const double want = double{m[i]} / (std::sqrt(double{v[i]}) + double{epsilon});
      worst = std::max(worst, Ulps(w[i], static_cast<float>(want)));
      ASSERT_LE(Ulps(w[i], static_cast<float>(want)), 2)
          << "v = " << v[i] << ", got " << w[i] << ", wanted " << want;
    }
    RecordProperty("worst_ulps", static_cast<int>(worst));
  }
}

TEST_P(VectorKernelsTest, AdamMatchesDoubleAtEverySize) {
  for (const size_t count : {0, 1, 15, 16, 17, 1000}) {
    const std::vector<float> gradient = RandomFloats(count + 1, -3, 3);
    std::vector<float> w = RandomFloats(count + 1, -1, 1);
    std::vector<float> m = RandomFloats(count + 1, -1e-2f, 1e-2f);
    std::vector<float> v = RandomFloats(count + 1, 0, 1e-4f);
    const std::vector<float> w0 = w;
    const std::vector<float> m0 = m;
    const std::vector<float> v0 = v;
    AdamUpdate update;
    update.count = count;
    update.gradient = gradient.data();
    update.parameters = w.data();
    update.first_moment = m.data();
    update.second_moment = v.data();
    update.scale = 0.125f;
    update.one_minus_beta1 = 0.1f;
    update.one_minus_beta2 = 0.001f;
    update.alpha = 0.002f;
    update.epsilon = 1e-7f;
    kernels_->adam(update);
    for (size_t i = 0; i < count; ++i) {
      const double g = gradient[i] * 0.125;
      const double want_m = m0[i] + (g - m0[i]) * double{0.1f};
      const double want_v = v0[i] + (g * g - v0[i]) * double{0.001f};
      const double move = double{0.002f} * want_m / (std::sqrt(want_v) + double{1e-7f});
      ASSERT_NEAR(m[i], want_m, 2e-7 * (std::abs(g) + std::abs(m0[i])));
      ASSERT_NEAR(v[i], want_v, 3e-7 * want_v);
      ASSERT_NEAR(w[i], w0[i] - move, 1e-7 + 1e-6 * std::abs(move));
    }
    EXPECT_EQ(w[count], w0[count]);
    EXPECT_EQ(m[count], m0[count]);
    EXPECT_EQ(v[count], v0[count]);
  }
}

// Where neither gradient nor moments ever were, the weight stays: dead pixels are not touched.
TEST_P(VectorKernelsTest, AdamLeavesDeadWeightsAlone) {
  std::vector<float> w = {0.5f, -0.25f, 0.125f};
  std::vector<float> zeros(3);
  std::vector<float> m(3);
  std::vector<float> v(3);
  AdamUpdate update{3, zeros.data(), w.data(), m.data(), v.data(), 1, 0.1f, 0.001f, 1e-3f, 1e-7f};
  kernels_->adam(update);
  EXPECT_THAT(w, ElementsAre(0.5f, -0.25f, 0.125f));
}

TEST_P(VectorKernelsTest, SgdIsExact) {
  const std::vector<float> gradient = RandomFloats(101, -3, 3);
  std::vector<float> w = RandomFloats(102, -1, 1);
  const std::vector<float> before = w;
  kernels_->sgd(gradient.data(), 101, 0.01f, w.data());
  for (size_t i = 0; i < 101; ++i) {
    const float step = 0.01f * gradient[i];
    ASSERT_EQ(w[i], before[i] - step) << i;
  }
  EXPECT_EQ(w[101], before[101]);
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, VectorKernelsTest,
                         testing::Values("AVX-512", "AVX2", "portable"),
                         [](const testing::TestParamInfo<std::string>& info) {
                           std::string name = info.param;
                           name.erase(std::remove(name.begin(), name.end(), '-'), name.end());
                           return name;
                         });

}  // namespace
}  // namespace ringmaster
