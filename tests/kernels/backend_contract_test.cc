// What kernels/backend.h promises apart from the arithmetic's accuracy: what is gathered, the tail,
// state, errors, poisoning. One suite for every implementation.

#include <cmath>
#include <cstring>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/tail_io.h"
#include "tests/kernels/backend_fixture.h"

namespace ringmaster {
namespace {

using testing::Each;

constexpr absl::Duration kTimeout = absl::Seconds(60);

class BackendContractTest : public BackendTest {};

StepWork Work(uint32_t epoch, PositionRange slice) {
  StepWork work;
  work.epoch = epoch;
  work.slice = slice;
  return work;
}

// One layer of zeros and 4 classes: the softmax is exactly 1/4, so the gradient of a single sample
// is (pixel / 255) * 1/4 for every class but the label, where it is -3/4: the image and its label
// can be read back.
struct Recovered {
  std::vector<int> pixels;
  int label = -1;
};

Recovered RecoverSample(const std::vector<float>& gradient, int pixels) {
  Recovered recovered;
  const float* const bias = &gradient[4 * pixels];
  for (int c = 0; c < 4; ++c) {
    if (bias[c] == -0.75f) recovered.label = c;
  }
  for (int p = 0; p < pixels; ++p) {
    const int other = recovered.label == 0 ? 1 : 0;
    recovered.pixels.push_back(static_cast<int>(std::lround(gradient[4 * p + other] * 4 * 255)));
  }
  return recovered;
}

TEST_P(BackendContractTest, GathersEachPositionsImageAndLabel) {
  const Dataset dataset =
      MakeDataset({.rows = 3, .columns = 4, .classes = 4, .train = 61, .test = 5});
  const BackendOptions options = MakeOptions({12, 4}, dataset, 8);
  const auto backend = Make(options, dataset);
  TrainState zeros = InitialState(options.model, 1);
  std::fill(zeros.parameters.begin(), zeros.parameters.end(), 0.0f);
  ASSERT_EQ(backend->SetState(zeros), absl::OkStatus());

  for (const uint32_t epoch : {0u, 3u}) {
    for (uint32_t position = 0; position < dataset.train.num_samples; ++position) {
      ASSERT_EQ(backend->ComputeGradient(Work(epoch, {position, 1})), absl::OkStatus());
      const std::vector<float> gradient = ReadGradient(*backend, options.model);
      const Recovered recovered = RecoverSample(gradient, 12);
      const uint32_t sample = options.plan.Order(epoch)(position);
      EXPECT_EQ(recovered.label, dataset.train.labels[sample]);
      for (int p = 0; p < 12; ++p) {
        const int pixel = dataset.train.images[12 * sample + p];
        ASSERT_EQ(recovered.pixels[p], pixel) << "position " << position << " pixel " << p;
        const int other = recovered.label == 0 ? 1 : 0;
        ASSERT_FLOAT_EQ(gradient[4 * p + other], static_cast<float>(pixel) / 255.0f * 0.25f);
      }
      EXPECT_EQ(ReadOwnRecord(*backend).digest, SampleFingerprint(sample));
    }
  }
}

TEST_P(BackendContractTest, AnEpochsRecordsCoverEverySampleOnce) {
  const Dataset dataset =
      MakeDataset({.rows = 2, .columns = 5, .classes = 3, .train = 331, .test = 5});
  const BackendOptions options = MakeOptions({10, 16, 3}, dataset, 64);
  const auto ranks = MakeWorld(3, options, dataset);
  uint64_t digest = 0;
  uint64_t samples = 0;
  ASSERT_EQ(options.plan.steps_per_epoch(), 6u);
  for (uint32_t step = 0; step < 6; ++step) {
    const PositionRange batch = options.plan.Batch(step);
    const StepRecord record = WorldStep(ranks, 2, batch).record;
    EXPECT_EQ(record.samples, step == 5 ? 11u : 64u);
    EXPECT_EQ(record.digest, DigestOf(SamplesAt(options.plan, 2, batch)));
    EXPECT_EQ(record.non_finite, 0u);
    digest += record.digest;
    samples += record.samples;
  }
  EXPECT_EQ(samples, 331u);
  std::vector<uint32_t> all;
  for (uint32_t i = 0; i < 331; ++i) all.push_back(i);
  EXPECT_EQ(digest, DigestOf(all));
}

TEST_P(BackendContractTest, FlagsAndRankTimesStandInTheTail) {
  const Dataset dataset = MakeDataset({.rows = 2, .columns = 3, .classes = 2, .train = 20});
  const BackendOptions options = MakeOptions({6, 2}, dataset, 6);
  const auto ranks = MakeWorld(3, options, dataset);
  const DeviceSpan whole = ranks[1]->reduce_buffer();
  const DeviceSpan tail = ranks[1]->tail_buffer();
  ASSERT_EQ(tail.element, whole.element);
  ASSERT_EQ(tail.count, TailSize(whole.element, 3));
  ASSERT_EQ(whole.count, options.model.num_parameters() + tail.count);
  ASSERT_EQ(tail.data, whole.Last(tail.count).data);

  StepWork work = Work(0, {2, 2});
  work.flags[tail::kFlagRegroup] = 1;
  ASSERT_EQ(ranks[1]->ComputeGradient(work), absl::OkStatus());
  const StepRecord record = ReadOwnRecord(*ranks[1]);
  EXPECT_THAT(record.flags, testing::ElementsAre(1));
  EXPECT_EQ(record.samples, 2u);

  // Nothing measured yet, then each rank fills its own two slots.
  const ReducedRecord first = WorldStep(ranks, 0, options.plan.Batch(0));
  ASSERT_EQ(first.rank_times.size(), 3u);
  for (const RankTimes& times : first.rank_times) EXPECT_EQ(times.compute_us, 0);
  const ReducedRecord second = WorldStep(ranks, 0, options.plan.Batch(1));
  for (const RankTimes& times : second.rank_times) {
    EXPECT_GT(times.compute_us, 0);
    EXPECT_GE(times.all_reduce_us, 0);
    EXPECT_LT(times.compute_us + times.all_reduce_us, 60e6f);
  }
  ASSERT_EQ(ranks[2]->ComputeGradient(Work(0, {0, 1})), absl::OkStatus());
  const std::vector<RankTimes> own = ReadOwnTail(*ranks[2], 3).rank_times;
  EXPECT_EQ(own[0].compute_us, 0);
  EXPECT_EQ(own[1].compute_us, 0);
  EXPECT_GT(own[2].compute_us, 0);
}

TEST_P(BackendContractTest, AnEmptySliceAddsNothing) {
  const Dataset dataset = MakeDataset({.rows = 2, .columns = 4, .classes = 3, .train = 30});
  const BackendOptions options = MakeOptions({8, 16, 3}, dataset, 2);
  const auto ranks = MakeWorld(5, options, dataset);
  // Leave something behind that an empty slice must clear.
  ASSERT_EQ(ranks[4]->ComputeGradient(Work(0, {0, 7})), absl::OkStatus());
  ASSERT_EQ(ranks[4]->ComputeGradient(Work(0, {2, 0})), absl::OkStatus());
  EXPECT_THAT(ReadGradient(*ranks[4], options.model), Each(0.0f));
  EXPECT_EQ(ReadOwnRecord(*ranks[4]), StepRecord{});

  const ReducedRecord record = WorldStep(ranks, 0, options.plan.Batch(1));
  EXPECT_EQ(record.record.samples, 2u);
  const auto first = ranks[0]->GetState();
  ASSERT_EQ(first.status(), absl::OkStatus());
  EXPECT_EQ(first->step, 1u);
  for (const auto& rank : ranks) EXPECT_EQ(*rank->GetState(), *first);
}

TEST_P(BackendContractTest, StateRoundTripsToTheBit) {
  const Dataset dataset = MakeDataset({.rows = 2, .columns = 4, .classes = 3, .train = 30});
  const BackendOptions options = MakeOptions({8, 5, 3}, dataset, 4);
  const auto backend = Make(options, dataset);
  const TrainState state = BusyState(options.model, 5);
  ASSERT_EQ(backend->SetState(state), absl::OkStatus());
  ASSERT_EQ(backend->GetState().status(), absl::OkStatus());
  EXPECT_EQ(*backend->GetState(), state);
}

TEST_P(BackendContractTest, StateOfAnotherModelIsRefused) {
  const Dataset dataset = MakeDataset({.rows = 2, .columns = 4, .classes = 3, .train = 30});
  const BackendOptions options = MakeOptions({8, 5, 3}, dataset, 4);
  const auto backend = Make(options, dataset);
  const TrainState good = BusyState(options.model, 5);
  ASSERT_EQ(backend->SetState(good), absl::OkStatus());
  for (std::vector<float> TrainState::*member :
       {&TrainState::parameters, &TrainState::first_moment, &TrainState::second_moment}) {
    TrainState bad = good;
    (bad.*member).push_back(1);
    EXPECT_EQ(backend->SetState(bad).code(), absl::StatusCode::kInvalidArgument);
    (bad.*member).clear();
    EXPECT_EQ(backend->SetState(bad).code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(*backend->GetState(), good);
}

TEST_P(BackendContractTest, TheSameWorkGivesTheSameBits) {
  const Dataset dataset =
      MakeDataset({.rows = 5, .columns = 8, .classes = 10, .train = 200, .test = 5});
  const BackendOptions options = MakeOptions({40, 32, 10}, dataset, 64);
  const auto a = MakeWorld(2, options, dataset);
  const auto b = MakeWorld(2, options, dataset);
  for (uint32_t step = 0; step < 4; ++step) {
    const PositionRange batch = options.plan.Batch(step);
    EXPECT_EQ(WorldStep(a, 0, batch).record, WorldStep(b, 0, batch).record);
  }
  EXPECT_EQ(*a[0]->GetState(), *b[1]->GetState());
  EXPECT_EQ(a[0]->GetState()->step, 4u);
}

TEST_P(BackendContractTest, PoisonKeepsUpdatesFromTheState) {
  const Dataset dataset = MakeDataset({.rows = 2, .columns = 4, .classes = 3, .train = 30});
  const BackendOptions options = MakeOptions({8, 16, 3}, dataset, 4);
  const auto backend = Make(options, dataset);
  const TrainState state = BusyState(options.model, 5);
  ASSERT_EQ(backend->SetState(state), absl::OkStatus());
  ASSERT_EQ(backend->ComputeGradient(Work(0, {0, 4})), absl::OkStatus());
  backend->Poison();
  // An asynchronous backend has only enqueued the update; that it does nothing shows in the state.
  const absl::Status update = backend->ApplyUpdate();
  EXPECT_TRUE(update.ok() || absl::IsAborted(update)) << update;
  EXPECT_EQ(backend->Collect(true, kTimeout).status().code(), absl::StatusCode::kAborted);
  ASSERT_EQ(backend->GetState().status(), absl::OkStatus());
  EXPECT_EQ(*backend->GetState(), state);

  ASSERT_EQ(backend->SetWorld(0, 1), absl::OkStatus());
  ASSERT_EQ(backend->ComputeGradient(Work(0, {0, 4})), absl::OkStatus());
  EXPECT_EQ(Finish(*backend).record.samples, 4u);
  EXPECT_EQ(backend->GetState()->step, state.step + 1);
  EXPECT_NE(backend->GetState()->parameters, state.parameters);
}

TEST_P(BackendContractTest, PlacesOutsideTheWorldAreRefused) {
  const Dataset dataset = MakeDataset({.rows = 2, .columns = 2, .classes = 3, .train = 30});
  const auto backend = Make(MakeOptions({4, 3}, dataset, 4), dataset);
  const int most = tail::kMaxWorldSize;
  EXPECT_EQ(backend->SetWorld(-1, 2).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend->SetWorld(2, 2).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend->SetWorld(0, 0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend->SetWorld(0, most + 1).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend->SetWorld(most - 1, most), absl::OkStatus());
  EXPECT_THAT(ReadBytes(*backend, backend->tail_buffer()), Each(0));
}

TEST_P(BackendContractTest, SlicesOutsideTheDataAreRefused) {
  const Dataset dataset =
      MakeDataset({.rows = 2, .columns = 2, .classes = 3, .train = 30, .test = 7});
  const auto backend = Make(MakeOptions({4, 3}, dataset, 4), dataset);
  const auto refused = absl::StatusCode::kInvalidArgument;
  const uint32_t huge = std::numeric_limits<uint32_t>::max();
  EXPECT_EQ(backend->ComputeGradient(Work(0, {29, 2})).code(), refused);
  EXPECT_EQ(backend->ComputeGradient(Work(0, {2, huge})).code(), refused);
  EXPECT_EQ(backend->ComputeEvaluation({7, 1}).code(), refused);
  EXPECT_EQ(backend->Predict(Split::kTest, {0, 8}).status().code(), refused);
  EXPECT_EQ(backend->Predict(Split::kTrain, {30, 1}).status().code(), refused);
  EXPECT_EQ(backend->ComputeGradient(Work(0, {29, 1})), absl::OkStatus());
}

TEST_P(BackendContractTest, AModelThatDoesNotFitTheDataIsRefused) {
  const Dataset dataset = MakeDataset({.rows = 2, .columns = 2, .classes = 3, .train = 30});
  const auto code = [&](const BackendOptions& options) {
    return CreateBackend(GetParam(), options, dataset).status().code();
  };
  EXPECT_EQ(code(MakeOptions({4, 8, 3}, dataset, 4)), absl::StatusCode::kOk);
  EXPECT_EQ(code(MakeOptions({4, 8, 5}, dataset, 4)), absl::StatusCode::kOk);  // spare classes
  EXPECT_EQ(code(MakeOptions({5, 3}, dataset, 4)), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(MakeOptions({4, 2}, dataset, 4)), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(MakeOptions({4}, dataset, 4)), absl::StatusCode::kInvalidArgument);
  BackendOptions other_plan = MakeOptions({4, 3}, dataset, 4);
  other_plan.plan.num_samples = 31;
  EXPECT_EQ(code(other_plan), absl::StatusCode::kInvalidArgument);
}

// Two weights whose sum overflows, on pixels that only samples 3 and 11 have.
TEST_P(BackendContractTest, NonFiniteLossesAreCountedAndLeftOut) {
  Dataset dataset = MakeDataset({.rows = 2, .columns = 4, .classes = 3, .train = 20, .test = 20});
  for (uint32_t i = 0; i < 20; ++i) {
    for (DatasetSplit* split : {&dataset.train, &dataset.test}) {
      split->images[8 * i + 5] = i == 3 || i == 11 ? 255 : 0;
      split->images[8 * i + 6] = split->images[8 * i + 5];
    }
  }
  const BackendOptions options = MakeOptions({8, 3}, dataset, 20);
  const auto backend = Make(options, dataset);
  TrainState state = InitialState(options.model, 9);
  ASSERT_EQ(backend->SetState(state), absl::OkStatus());
  ASSERT_EQ(backend->ComputeGradient(Work(0, {0, 20})), absl::OkStatus());
  EXPECT_EQ(ReadOwnRecord(*backend).non_finite, 0u);

  state.parameters[3 * 5] = state.parameters[3 * 6] = 3e38f;
  ASSERT_EQ(backend->SetState(state), absl::OkStatus());
  ASSERT_EQ(backend->ComputeEvaluation({0, 20}), absl::OkStatus());
  const StepRecord with = ReadOwnRecord(*backend);
  EXPECT_EQ(with.non_finite, 2u);
  EXPECT_EQ(with.samples, 20u);
  ASSERT_EQ(backend->ComputeGradient(Work(0, {0, 20})), absl::OkStatus());
  EXPECT_EQ(ReadOwnRecord(*backend).non_finite, 2u);

  uint64_t finite_sum = 0;
  for (uint32_t i = 0; i < 20; ++i) {
    if (i == 3 || i == 11) continue;
    ASSERT_EQ(backend->ComputeEvaluation({i, 1}), absl::OkStatus());
    finite_sum += ReadOwnRecord(*backend).loss_sum_quanta;
  }
  EXPECT_NEAR(static_cast<double>(with.loss_sum_quanta), static_cast<double>(finite_sum),
              1e-6 * static_cast<double>(finite_sum));
}

TEST_P(BackendContractTest, NonFiniteActivationsPassThroughTheHiddenLayer) {
  const Dataset dataset = MakeDataset({.rows = 2, .columns = 4, .classes = 3, .train = 20});
  const BackendOptions options = MakeOptions({8, 16, 3}, dataset, 20);
  const auto backend = Make(options, dataset);
  TrainState state = InitialState(options.model, 9);
  state.parameters[8 * 16 + 2] = std::numeric_limits<float>::quiet_NaN();  // a hidden bias
  ASSERT_EQ(backend->SetState(state), absl::OkStatus());
  ASSERT_EQ(backend->ComputeGradient(Work(0, {0, 20})), absl::OkStatus());
  EXPECT_EQ(ReadOwnRecord(*backend).non_finite, 20u);
  EXPECT_EQ(ReadOwnRecord(*backend).loss_sum_quanta, 0u);
}

TEST_P(BackendContractTest, EvaluationIsShardedExactly) {
  const Dataset dataset =
      MakeDataset({.rows = 4, .columns = 6, .classes = 10, .train = 50, .test = 307});
  const BackendOptions options = MakeOptions({24, 32, 10}, dataset, 10);
  std::vector<uint32_t> all;
  for (uint32_t i = 0; i < 307; ++i) all.push_back(i);
  StepRecord one;
  for (const int world_size : {1, 2, 3, 5}) {
    const auto ranks = MakeWorld(world_size, options, dataset);
    for (const auto& rank : ranks) {
      ASSERT_EQ(rank->SetState(BusyState(options.model, 4)), absl::OkStatus());
    }
    const StepRecord record = WorldEvaluation(ranks, {0, 307}).record;
    if (world_size == 1) one = record;
    EXPECT_EQ(record.samples, 307u);
    EXPECT_EQ(record.digest, DigestOf(all));
    EXPECT_EQ(record.correct, one.correct);
    EXPECT_NEAR(record.mean_loss(), one.mean_loss(), 1e-6 * one.mean_loss());
    EXPECT_EQ(*ranks[0]->GetState(), BusyState(options.model, 4));
  }
}

TEST_P(BackendContractTest, PredictionsAreTheEvaluationsOwn) {
  const Dataset dataset =
      MakeDataset({.rows = 4, .columns = 6, .classes = 10, .train = 210, .test = 307});
  const BackendOptions options = MakeOptions({24, 32, 10}, dataset, 10);
  const auto backend = Make(options, dataset);
  ASSERT_EQ(backend->SetState(BusyState(options.model, 4)), absl::OkStatus());
  const uint64_t correct = [&] {
    EXPECT_EQ(backend->ComputeEvaluation({5, 300}), absl::OkStatus());
    return ReadOwnRecord(*backend).correct;
  }();
  const auto test = backend->Predict(Split::kTest, {5, 300});
  ASSERT_EQ(test.status(), absl::OkStatus());
  ASSERT_EQ(test->size(), 300u);
  uint64_t equal = 0;
  for (size_t i = 0; i < 300; ++i) equal += (*test)[i] == dataset.test.labels[5 + i] ? 1 : 0;
  EXPECT_EQ(equal, correct);
  EXPECT_GT(correct, 0u);

  const auto train = backend->Predict(Split::kTrain, {200, 10});
  ASSERT_EQ(train.status(), absl::OkStatus());
  EXPECT_EQ(train->size(), 10u);
  EXPECT_TRUE(backend->Predict(Split::kTest, {7, 0})->empty());
}

INSTANTIATE_TEST_SUITE_P(All, BackendContractTest, testing::ValuesIn(BackendImplementations()),
                         ImplementationName);

}  // namespace
}  // namespace ringmaster
