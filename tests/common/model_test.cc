#include "common/model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

TEST(ModelSpecTest, DefaultIsTheKerasExample) {
  const ModelSpec model;
  EXPECT_EQ(model.num_parameters(), 101'770u);
  EXPECT_EQ(model.num_layers(), 2);
  EXPECT_EQ(model.inputs(), 784);
  EXPECT_EQ(model.classes(), 10);
  EXPECT_EQ(model.Validate(), absl::OkStatus());
}

TEST(ModelSpecTest, SlicesLieOneAfterTheOther) {
  const ModelSpec model{{784, 512, 256, 10}};
  const std::vector<std::pair<std::string, std::vector<int64_t>>> wanted = {
      {"dense/kernel", {784, 512}}, {"dense/bias", {512}},         {"dense_1/kernel", {512, 256}},
      {"dense_1/bias", {256}},      {"dense_2/kernel", {256, 10}}, {"dense_2/bias", {10}}};
  const auto slices = model.Slices();
  ASSERT_EQ(slices.size(), wanted.size());
  size_t offset = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_EQ(slices[i].name, wanted[i].first);
    EXPECT_EQ(slices[i].shape, wanted[i].second);
    EXPECT_EQ(slices[i].offset, offset);
    size_t count = 1;
    for (const int64_t size : slices[i].shape) count *= static_cast<size_t>(size);
    EXPECT_EQ(slices[i].count, count);
    offset += count;
  }
  EXPECT_EQ(offset, model.num_parameters());
}

TEST(ModelSpecTest, ValidateRefusesWhatIsNoModel) {
  for (const std::vector<int>& layers : std::vector<std::vector<int>>{{}, {784}}) {
    const absl::Status status = ModelSpec{layers}.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("at least two"));
  }
  for (const int width : {0, -1, ModelSpec::kMaxWidth + 1}) {
    const absl::Status status = ModelSpec{{784, width, 10}}.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(width)));
  }
  EXPECT_EQ((ModelSpec{{1, ModelSpec::kMaxWidth}}.Validate()), absl::OkStatus());
}

TEST(OptimizerSpecTest, ValidateChecksEachValue) {
  EXPECT_EQ(OptimizerSpec().Validate(), absl::OkStatus());
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(),
                       std::numeric_limits<float>::infinity(), -1.0f};
  for (float OptimizerSpec::*field : {&OptimizerSpec::learning_rate, &OptimizerSpec::beta1,
                                      &OptimizerSpec::beta2, &OptimizerSpec::epsilon}) {
    for (const float value : bad) {
      OptimizerSpec spec;
      spec.*field = value;
      EXPECT_EQ(spec.Validate().code(), absl::StatusCode::kInvalidArgument) << value;
    }
  }
  for (float OptimizerSpec::*field : {&OptimizerSpec::beta1, &OptimizerSpec::beta2}) {
    OptimizerSpec spec;
    spec.*field = 0;
    EXPECT_EQ(spec.Validate(), absl::OkStatus());
    spec.*field = 1;
    EXPECT_EQ(spec.Validate().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(OptimizerSpecTest, SgdDoesNotMindAdamsValues) {
  OptimizerSpec spec;
  spec.kind = OptimizerSpec::Kind::kSgd;
  spec.epsilon = 0;
  EXPECT_EQ(spec.Validate(), absl::OkStatus());
  spec.learning_rate = 0;
  EXPECT_EQ(spec.Validate().code(), absl::StatusCode::kInvalidArgument);
}

TEST(InitialStateTest, GlorotUniformKernelsAndZeroBiases) {
  const ModelSpec model;
  const TrainState state = InitialState(model, 1);
  ASSERT_EQ(state.parameters.size(), model.num_parameters());
  EXPECT_EQ(state.first_moment, std::vector<float>(model.num_parameters()));
  EXPECT_EQ(state.second_moment, std::vector<float>(model.num_parameters()));
  EXPECT_EQ(state.step, 0u);
  for (const ParameterSlice& slice : model.Slices()) {
    const auto first = state.parameters.begin() + static_cast<ptrdiff_t>(slice.offset);
    const std::vector<float> values(first, first + static_cast<ptrdiff_t>(slice.count));
    if (slice.shape.size() == 1) {
      EXPECT_EQ(values, std::vector<float>(slice.count)) << slice.name;
      continue;
    }
    const double limit = std::sqrt(6.0 / static_cast<double>(slice.shape[0] + slice.shape[1]));
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    EXPECT_GE(*least, -static_cast<float>(limit));
    EXPECT_LE(*most, static_cast<float>(limit));
    double sum = 0;
    double squares = 0;
    for (const double value : values) {
      sum += value;
      squares += value * value;
    }
    // Within five standard errors of a uniform distribution's mean and variance.
    const double n = static_cast<double>(values.size());
    EXPECT_NEAR(sum / n, 0, 5 * limit / std::sqrt(3 * n)) << slice.name;
    EXPECT_NEAR(squares / n, limit * limit / 3, 5 * limit * limit * std::sqrt(4 / (45 * n)));
  }
}

// From an independent program: the weights of every run with this seed, on any machine.
TEST(InitialStateTest, GoldenValues) {
  const TrainState state = InitialState(ModelSpec(), 1);
  EXPECT_EQ(state.parameters[0], -0.0507631525f);
  EXPECT_EQ(state.parameters[1], -0.0130784828f);
  EXPECT_EQ(state.parameters[2], -0.0366691016f);
  EXPECT_EQ(state.parameters[3], -0.00186593318f);
  EXPECT_EQ(WeightsSha256(state.parameters),
            "82a1a5828cbdcc60d2e99e5d8f802294c0e63ec4bb400e5377e92da0987548cb");
  // Kernels whose size is no multiple of the generator's four words.
  EXPECT_EQ(StateSha256(InitialState(ModelSpec{{3, 5, 2}}, 1)),
            "a5ce3d20a6d738a354a5c92c3f8db105dbe56ff6d7f9d87f3ca6e15fbae45627");
}

TEST(InitialStateTest, SeedAndLayerChooseTheNumbers) {
  const ModelSpec model{{4, 4, 4}};
  const TrainState one = InitialState(model, 1);
  EXPECT_EQ(InitialState(model, 1), one);
  EXPECT_NE(InitialState(model, 2), one);
  EXPECT_NE(InitialState(model, uint64_t{1} << 32 | 1), one);
  const auto second = one.parameters.begin() + 20;
  EXPECT_FALSE(std::equal(one.parameters.begin(), one.parameters.begin() + 16, second));
}

TrainState SmallState() { return {{1, -2, 0.5}, {0, 0.25, -1}, {1, 0, 4}, 7}; }

TEST(DigestTest, GoldenValues) {
  EXPECT_EQ(WeightsSha256(SmallState().parameters),
            "2ce4bdb6b34a50ac7092eb9fee94337a27498e9eb9bae44192f15b88831b2422");
  EXPECT_EQ(StateSha256(SmallState()),
            "1593eb144ea10ede4e148858e3d6bd9efbe730952ca6e042442b27870aec77ae");
}

TEST(DigestTest, EverythingThatTrainingGoesOnFromCounts) {
  const std::string digest = StateSha256(SmallState());
  TrainState state = SmallState();
  state.step = 8;
  EXPECT_NE(StateSha256(state), digest);
  for (auto TrainState::*values :
       {&TrainState::parameters, &TrainState::first_moment, &TrainState::second_moment}) {
    state = SmallState();
    (state.*values)[2] = std::nextafter((state.*values)[2], 100.0f);
    EXPECT_NE(StateSha256(state), digest);
  }
}

}  // namespace
}  // namespace ringmaster
