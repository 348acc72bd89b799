#include "coordinator/tensorboard/summary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace ringmaster::tensorboard {
namespace {

struct Bucket {
  double left;
  double right;
  double count;
};

std::vector<Bucket> Buckets(const std::vector<float>& values) {
  const Summary::Value value = HistogramValue("tag", values);
  EXPECT_EQ(value.tensor().dtype(), DT_DOUBLE);
  EXPECT_EQ(value.tensor().tensor_shape().dim_size(), 2);
  EXPECT_EQ(value.tensor().tensor_shape().dim(0).size(), 30);
  EXPECT_EQ(value.tensor().tensor_shape().dim(1).size(), 3);
  EXPECT_EQ(value.tensor().double_val_size(), 90);
  std::vector<Bucket> buckets;
  for (int i = 0; i + 2 < value.tensor().double_val_size(); i += 3) {
    const auto& numbers = value.tensor().double_val();
    buckets.push_back({numbers[i], numbers[i + 1], numbers[i + 2]});
  }
  return buckets;
}

TEST(SummaryTest, ScalarIsARankZeroFloat) {
  const Summary::Value value = ScalarValue("loss", 0.5f);
  EXPECT_EQ(value.tag(), "loss");
  EXPECT_EQ(value.tensor().dtype(), DT_FLOAT);
  EXPECT_TRUE(value.tensor().has_tensor_shape());
  EXPECT_EQ(value.tensor().tensor_shape().dim_size(), 0);
  EXPECT_THAT(value.tensor().float_val(), ::testing::ElementsAre(0.5f));
  EXPECT_EQ(value.metadata().plugin_data().plugin_name(), "scalars");
  EXPECT_EQ(value.metadata().data_class(), DATA_CLASS_SCALAR);
}

TEST(SummaryTest, Text) {
  const Summary::Value value = TextValue("config", "| a | b |");
  EXPECT_EQ(value.tensor().dtype(), DT_STRING);
  EXPECT_THAT(value.tensor().string_val(), ::testing::ElementsAre("| a | b |"));
  EXPECT_EQ(value.metadata().plugin_data().plugin_name(), "text");
  EXPECT_EQ(value.metadata().data_class(), DATA_CLASS_TENSOR);
}

TEST(SummaryTest, HistogramMetadata) {
  const Summary::Value value = HistogramValue("dense/kernel/histogram", std::vector<float>{1, 2});
  EXPECT_EQ(value.metadata().plugin_data().plugin_name(), "histograms");
  EXPECT_EQ(value.metadata().data_class(), DATA_CLASS_TENSOR);
}

// One value in the middle of each bucket, then both ends.
TEST(SummaryTest, HistogramBucketsHoldTheirLeftEndAndTheLastItsRight) {
  std::vector<float> values = {0, 30, 29};
  for (int i = 0; i < 30; ++i) values.push_back(static_cast<float>(i) + 0.5f);
  const std::vector<Bucket> buckets = Buckets(values);
  for (int i = 0; i < 30; ++i) {
    EXPECT_EQ(buckets[i].left, i);
    EXPECT_EQ(buckets[i].right, i + 1);
    EXPECT_EQ(buckets[i].count, i == 0 ? 2 : i == 29 ? 3 : 1) << i;
  }
}

TEST(SummaryTest, HistogramOfEqualValues) {
  const std::vector<Bucket> buckets = Buckets({-2, -2, -2});
  for (int i = 0; i < 30; ++i) {
    EXPECT_EQ(buckets[i].left, -2);
    EXPECT_EQ(buckets[i].right, -2);
    EXPECT_EQ(buckets[i].count, i == 29 ? 3 : 0);
  }
}

TEST(SummaryTest, HistogramOfNothing) {
  for (const Bucket& bucket : Buckets({})) {
    EXPECT_EQ(bucket.left, 0);
    EXPECT_EQ(bucket.right, 0);
    EXPECT_EQ(bucket.count, 0);
  }
}

TEST(SummaryTest, HistogramLeavesOutWhatIsNotFinite) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<Bucket> buckets = Buckets({infinity, 1, std::nanf(""), 2, -infinity});
  EXPECT_EQ(buckets.front().left, 1);
  EXPECT_EQ(buckets.back().right, 2);
  double count = 0;
  for (const Bucket& bucket : buckets) count += bucket.count;
  EXPECT_EQ(count, 2);
}

// Extremes whose difference does not fit a float, and neighbours that hardly differ.
TEST(SummaryTest, HistogramOfExtremes) {
  const float most = std::numeric_limits<float>::max();
  const std::vector<Bucket> wide = Buckets({-most, most});
  EXPECT_EQ(wide.front().count, 1);
  EXPECT_EQ(wide.back().count, 1);
  const float tiny = std::numeric_limits<float>::denorm_min();
  const std::vector<Bucket> narrow = Buckets({0, tiny});
  EXPECT_EQ(narrow.front().count, 1);
  EXPECT_EQ(narrow.back().count, 1);
}

}  // namespace
}  // namespace ringmaster::tensorboard
