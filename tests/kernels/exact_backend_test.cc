// Reproducible backends: every instruction set, the GPU (or its emulation) and every world size
// have the same bits.

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/dataset.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/exact.h"
#include "tests/kernels/backend_fixture.h"

namespace ringmaster {
namespace {

using testing::HasSubstr;

// The first samples of MNIST: steps of 128, the last one of an epoch of 77, which ends inside a
// micro-shard.
constexpr uint32_t kSamples = 3 * 128 + 77;

Dataset Head(const Dataset& whole, uint32_t samples) {
  Dataset head = whole;
  for (DatasetSplit* split : {&head.train, &head.test}) {
    split->num_samples = samples;
    split->labels.resize(samples);
    split->images.resize(size_t{samples} * whole.pixels());
  }
  return head;
}

const Dataset& Mnist() {
  static const auto* const dataset = [] {
    const auto files = ReadDatasetFiles("data/mnist");
    EXPECT_EQ(files.status(), absl::OkStatus());
    auto decoded = DecodeDataset(*files);
    EXPECT_EQ(decoded.status(), absl::OkStatus());
    return new Dataset(*std::move(decoded));
  }();
  return *dataset;
}

struct Course {
  std::string state;  // StateSha256 at the end
  std::vector<StepRecord> records;

  friend bool operator==(const Course&, const Course&) = default;
};

class ExactBackendTest : public BackendTest {
 protected:
  // `epochs` of training and an evaluation after each.
  Course Train(const BackendOptions& options, const Dataset& dataset, int world_size,
               uint32_t epochs) const {
    const auto ranks = MakeWorld(world_size, options, dataset);
    Course course;
    for (uint32_t epoch = 0; epoch < epochs; ++epoch) {
      for (uint32_t step = 0; step < options.plan.steps_per_epoch(); ++step) {
        course.records.push_back(WorldStep(ranks, epoch, options.plan.Batch(step)).record);
      }
      course.records.push_back(WorldEvaluation(ranks, {0, dataset.test.num_samples}).record);
    }
    for (const auto& rank : ranks) {
      const auto state = rank->GetState();
      EXPECT_EQ(state.status(), absl::OkStatus());
      if (course.state.empty()) course.state = StateSha256(*state);
      EXPECT_EQ(StateSha256(*state), course.state);
    }
    return course;
  }
};

// The digest is what any machine must come to: if it changes, so has the arithmetic.
TEST_P(ExactBackendTest, MnistComesToTheSameBitsEverywhere) {
  const Dataset dataset = Head(Mnist(), kSamples);
  const BackendOptions options = MakeOptions({784, 128, 10}, dataset, 128);
  const Course course = Train(options, dataset, 1, 2);
  EXPECT_EQ(course.state, "8729736df307fb34e40d4a06fd3c9d8d256154a121b03a89bfcae715d8dfd079");
  EXPECT_LT(course.records.back().mean_loss(), 0.8 * course.records.front().mean_loss())
      << "nothing was learnt";

  BackendOptions sgd = options;
  sgd.optimizer.kind = OptimizerSpec::Kind::kSgd;
  sgd.optimizer.learning_rate = 0.1f;
  EXPECT_EQ(Train(sgd, dataset, 1, 1).state,
            "c7b49755ace926fb0bb52d8f68a896355a2f8efcaac71097bfc5f7211174c112");
}

TEST_P(ExactBackendTest, AnyWorldSizeHasTheSameBits) {
  const Dataset dataset = Head(Mnist(), kSamples);
  const BackendOptions options = MakeOptions({784, 32, 10}, dataset, 128);
  const Course one = Train(options, dataset, 1, 1);
  for (const int world_size : {2, 3, 5, 8, 11}) {
    EXPECT_EQ(Train(options, dataset, world_size, 1), one) << world_size;
  }
}

// Widths that no vector divides, one layer, many layers, no zeros among the pixels, several chunks.
TEST_P(ExactBackendTest, OddShapesHaveTheBitsOfThePortableBackend) {
  const std::vector<std::pair<std::vector<int>, DatasetShape>> cases = {
      {{7, 5, 3}, {7, 1, 3, 50, 20}},
      {{12, 4}, {3, 4, 4, 150, 33}},
      {{6, 1, 1, 2}, {2, 3, 2, 40, 17, 0}},
      {{99, 48, 17, 32, 11}, {9, 11, 11, 280, 30, 20}},
  };
  for (const auto& [layers, shape] : cases) {
    SCOPED_TRACE(layers.size());
    const Dataset dataset = MakeDataset(shape);
    const BackendOptions options = MakeOptions(layers, dataset, 199);
    const auto train = [&](const std::string& implementation) {
      auto backend = CreateBackend(implementation, options, dataset);
      EXPECT_EQ(backend.status(), absl::OkStatus());
      EXPECT_EQ((*backend)->SetState(BusyState(options.model, 3)), absl::OkStatus());
      std::vector<std::unique_ptr<Backend>> world;
      world.push_back(*std::move(backend));
      std::vector<StepRecord> records;
      for (uint32_t epoch = 0; epoch < 3; ++epoch) {
        for (uint32_t step = 0; step < options.plan.steps_per_epoch(); ++step) {
          records.push_back(WorldStep(world, epoch, options.plan.Batch(step)).record);
        }
        records.push_back(WorldEvaluation(world, {0, dataset.test.num_samples}).record);
      }
      return Course{StateSha256(*world[0]->GetState()), records};
    };
    EXPECT_EQ(train(GetParam()), train("exact_cpu_portable"));
  }
}

// One rank's gradient is too large: no rank applies the step, nor any later one, and all say why.
TEST_P(ExactBackendTest, AGradientOutOfRangeIsAnErrorOnEveryRank) {
  const Dataset dataset = MakeDataset({.rows = 2, .columns = 4, .classes = 3, .train = 96});
  const BackendOptions options = MakeOptions({8, 16, 3}, dataset, 32);
  // What a hidden unit's activation multiplies into.
  for (const float huge : {3e4f, 3e38f, std::numeric_limits<float>::quiet_NaN()}) {
    SCOPED_TRACE(huge);
    const auto ranks = MakeWorld(2, options, dataset);
    TrainState state = BusyState(options.model, 4);
    for (int unit = 0; unit < 16; ++unit) state.parameters[8 * 16 + unit] = huge;
    for (size_t r = 0; r < ranks.size(); ++r) {
      // Only rank 1's weights are bad.
      ASSERT_EQ(ranks[r]->SetState(r == 1 ? state : BusyState(options.model, 4)), absl::OkStatus());
      StepWork work;
      work.slice = {16 * static_cast<uint32_t>(r), 16};
      ASSERT_EQ(ranks[r]->ComputeGradient(work), absl::OkStatus());
    }
    EXPECT_EQ(ReadOwnRecord(*ranks[0]).out_of_range, 0u);
    EXPECT_EQ(ReadOwnRecord(*ranks[1]).out_of_range, 1u);
    // Both ranks come to the sum, of which the tail is what matters here.
    std::vector<char> tail = ReadBytes(*ranks[1], ranks[1]->tail_buffer());
    ASSERT_EQ(ranks[0]->WriteBuffer(tail.data(), ranks[0]->tail_buffer()), absl::OkStatus());
    for (const auto& rank : ranks) {
      const TrainState before = *rank->GetState();
      const absl::Status update = rank->ApplyUpdate();
      EXPECT_TRUE(update.ok() || absl::IsOutOfRange(update)) << update;
      const absl::Status collected = rank->Collect(true, absl::Seconds(60)).status();
      EXPECT_EQ(collected.code(), absl::StatusCode::kOutOfRange);
      EXPECT_THAT(std::string(collected.message()), HasSubstr("not below 2048 in magnitude"));
      EXPECT_THAT(std::string(collected.message()), HasSubstr("lower --learning-rate"));
      // A good step after it does not apply either.
      ASSERT_EQ(rank->ComputeGradient({}), absl::OkStatus());
      const absl::Status later = rank->ApplyUpdate();
      EXPECT_TRUE(later.ok() || absl::IsOutOfRange(later)) << later;
      EXPECT_EQ(rank->Collect(true, absl::Seconds(60)).status().code(),
                absl::StatusCode::kOutOfRange);
      const TrainState after = *rank->GetState();
      EXPECT_EQ(after.step, before.step);
      EXPECT_EQ(WeightsSha256(after.parameters), WeightsSha256(before.parameters));
      ASSERT_EQ(rank->SetWorld(0, 1), absl::OkStatus());
    }
    ASSERT_EQ(ranks[0]->ComputeGradient({}), absl::OkStatus());
    EXPECT_EQ(Finish(*ranks[0]).record.samples, 0u);
  }
}

TEST_P(ExactBackendTest, PlansThatCannotBeExactAreRefused) {
  const Dataset dataset = MakeDataset({.rows = 1, .columns = 1, .classes = 2, .train = 66'000});
  const auto status = [&](uint32_t batch) {
    return CreateBackend(GetParam(), MakeOptions({1, 2}, dataset, batch), dataset).status();
  };
  EXPECT_EQ(status(65'520), absl::OkStatus());
  EXPECT_EQ(status(65'521).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status(65'521).message()), HasSubstr("65520"));
}

TEST(ExactOptionsTest, SlicesThatCutMicroShardsAreRefused) {
  const Dataset dataset = MakeDataset({.rows = 1, .columns = 1, .classes = 2, .train = 60});
  BackendOptions options = MakeOptions({1, 2}, dataset, 32);
  options.reproducible = true;
  EXPECT_EQ(CreateCpuBackend(options, dataset).status().code(), absl::StatusCode::kInvalidArgument);
  options.plan.granularity = kMicroShard;
  EXPECT_EQ(CreateCpuBackend(options, dataset).status(), absl::OkStatus());
}

TEST(ExactOptionsTest, ThreadsDoNotChangeTheBits) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "ThreadSanitizer does not see the barriers of libgomp";
#endif
  const Dataset dataset = MakeDataset({28, 28, 10, 200, 3, 80});
  BackendOptions options = MakeOptions({784, 50, 10}, dataset, 150);
  options.reproducible = true;
  options.plan.granularity = kMicroShard;
  std::vector<std::string> states;
  for (const int threads : {1, 2, 3}) {
    options.threads = threads;
    const auto backend = CreateCpuBackend(options, dataset);
    ASSERT_EQ(backend.status(), absl::OkStatus());
    StepWork work;
    work.slice = {0, 150};
    ASSERT_EQ((*backend)->ComputeGradient(work), absl::OkStatus());
    Finish(**backend);
    states.push_back(StateSha256(*(*backend)->GetState()));
  }
  EXPECT_EQ(states[1], states[0]);
  EXPECT_EQ(states[2], states[0]);
}

INSTANTIATE_TEST_SUITE_P(All, ExactBackendTest, testing::ValuesIn(ExactBackendImplementations()),
                         ImplementationName);

}  // namespace
}  // namespace ringmaster
