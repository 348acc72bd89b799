// The backends' arithmetic against an independent double-precision reference: gradients (and the
// reference's own against finite differences), 50 steps of training side by side, and worlds of
// several ranks against one. One suite for every implementation.

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/dataset.h"
#include "gtest/gtest.h"
#include "tests/kernels/backend_fixture.h"
#include "tests/kernels/reference.h"

namespace ringmaster {
namespace {

class BackendNumericsTest : public BackendTest {};

struct Case {
  std::vector<int> layers;
  DatasetShape shape;
  std::vector<uint32_t> counts;  // slice sizes
};

// Odd shapes, one layer, a width that no vector divides, deep and shallow; slices of 1, of primes,
// and larger than a chunk.
std::vector<Case> Cases() {
  return {
      {{7, 5, 3}, {7, 1, 3, 150, 3}, {1, 13, 150}},
      {{12, 4}, {3, 4, 4, 150, 3}, {1, 37, 150}},
      {{6, 1, 1, 2}, {2, 3, 2, 40, 3, 20}, {1, 40}},
      {{99, 48, 17, 32, 11}, {9, 11, 11, 280, 3}, {1, 127, 129, 280}},
      {{784, 128, 10}, {28, 28, 10, 160, 3, 80}, {1, 43, 160}},
      {{784, 512, 256, 10}, {28, 28, 10, 40, 3, 80}, {3, 40}},
  };
}

std::string Describe(const Case& c, uint32_t count) {
  return absl::StrCat("layers ", absl::StrJoin(c.layers, ","), ", ", count, " samples");
}

double LargestAbsolute(const double* values, size_t count) {
  double largest = 0;
  for (size_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(values[i]));
  return largest;
}

// fp32 sums: each tensor's error is held against its largest element and, where the samples cancel
// each other, against what rounding may leave of each sample's share (of the order of 1).
constexpr double kGradientTolerance = 4e-6;
constexpr double kSampleTolerance = 6e-8;

void ExpectGradientNear(const ModelSpec& model, size_t samples, const std::vector<float>& got,
                        const std::vector<double>& want) {
  for (const ParameterSlice& slice : model.Slices()) {
    const double scale = LargestAbsolute(&want[slice.offset], slice.count);
    double worst = 0;
    for (size_t i = slice.offset; i < slice.offset + slice.count; ++i) {
      worst = std::max(worst, std::abs(double{got[i]} - want[i]));
    }
    EXPECT_LE(worst, kGradientTolerance * scale + kSampleTolerance * samples)
        << slice.name << ", largest " << scale;
  }
}

TEST_P(BackendNumericsTest, GradientsAndRecordsMatchTheReference) {
  for (const Case& c : Cases()) {
    const Dataset dataset = MakeDataset(c.shape);
    const BackendOptions options = MakeOptions(c.layers, dataset, 32);
    const auto backend = Make(options, dataset);
    const TrainState state = BusyState(options.model, 21);
    ASSERT_EQ(backend->SetState(state), absl::OkStatus());
    const std::vector<double> w = reference::FromTrainState(state).parameters;
    for (const uint32_t count : c.counts) {
      SCOPED_TRACE(Describe(c, count));
      StepWork work;
      work.epoch = 1;
      work.slice = {dataset.train.num_samples - count, count};
      ASSERT_EQ(backend->ComputeGradient(work), absl::OkStatus());
      const auto samples = SamplesAt(options.plan, 1, work.slice);
      const auto want = reference::ForwardBackward(c.layers, w, dataset.train, samples);
      ExpectGradientNear(options.model, count, ReadGradient(*backend, options.model),
                         want.gradient);
      const StepRecord record = ReadOwnRecord(*backend);
      EXPECT_NEAR(record.loss_sum(), want.loss, 2e-6 * want.loss);
      EXPECT_EQ(record.correct, want.correct);
      EXPECT_EQ(record.samples, count);
      EXPECT_EQ(record.digest, DigestOf(samples));
    }
  }
}

// Central differences of the reference's loss in double, at every parameter of a small model and
// at some of a large one.
TEST_P(BackendNumericsTest, GradientsMatchFiniteDifferences) {
  for (const Case& c : {Cases()[0], Cases()[1], Cases()[4]}) {
    SCOPED_TRACE(Describe(c, 9));
    const Dataset dataset = MakeDataset(c.shape);
    const BackendOptions options = MakeOptions(c.layers, dataset, 32);
    const auto backend = Make(options, dataset);
    const TrainState state = BusyState(options.model, 22);
    ASSERT_EQ(backend->SetState(state), absl::OkStatus());
    StepWork work;
    work.slice = {3, 9};
    ASSERT_EQ(backend->ComputeGradient(work), absl::OkStatus());
    const std::vector<float> gradient = ReadGradient(*backend, options.model);

    const auto samples = SamplesAt(options.plan, 0, work.slice);
    std::vector<double> w = reference::FromTrainState(state).parameters;
    const size_t stride = std::max<size_t>(1, w.size() / 97);
    for (size_t i = 0; i < w.size(); i += stride) {
      constexpr double kStep = 1e-6;
      const double at = w[i];
      w[i] = at + kStep;
      const double above = reference::Forward(c.layers, w, dataset.train, samples).loss;
      w[i] = at - kStep;
      const double below = reference::Forward(c.layers, w, dataset.train, samples).loss;
      w[i] = at;
      const double difference = (above - below) / (2 * kStep);
      ASSERT_NEAR(gradient[i], difference, 1e-5 * std::abs(difference) + 2e-6) << "parameter " << i;
    }
  }
}

TEST_P(BackendNumericsTest, PredictionsMatchTheReference) {
  const Case c = Cases()[3];
  DatasetShape shape = c.shape;
  shape.test = 200;
  const Dataset dataset = MakeDataset(shape);
  const BackendOptions options = MakeOptions(c.layers, dataset, 32);
  const auto backend = Make(options, dataset);
  const TrainState state = BusyState(options.model, 23);
  ASSERT_EQ(backend->SetState(state), absl::OkStatus());
  const auto got = backend->Predict(Split::kTest, {0, 200});
  ASSERT_EQ(got.status(), absl::OkStatus());
  std::vector<uint32_t> all;
  for (uint32_t i = 0; i < 200; ++i) all.push_back(i);
  const auto want =
      reference::Forward(c.layers, reference::FromTrainState(state).parameters, dataset.test, all);
  for (uint32_t i = 0; i < 200; ++i) {
    if (want.margins[i] > 1e-5) {
      EXPECT_EQ((*got)[i], want.predictions[i]) << "sample " << i;
    }
  }
}

// The reference's losses and final parameters over 50 steps, computed once for all implementations.
struct Trajectory {
  std::vector<double> losses;
  reference::State state;
};

constexpr uint32_t kSteps = 50;

Trajectory TrainReference(const BackendOptions& options, const Dataset& dataset,
                          const TrainState& start) {
  Trajectory trajectory{{}, reference::FromTrainState(start)};
  const uint32_t steps_per_epoch = options.plan.steps_per_epoch();
  for (uint32_t step = 0; step < kSteps; ++step) {
    const PositionRange batch = options.plan.Batch(step % steps_per_epoch);
    const auto samples = SamplesAt(options.plan, step / steps_per_epoch, batch);
    const auto sums = reference::ForwardBackward(options.model.layers, trajectory.state.parameters,
                                                 dataset.train, samples);
    trajectory.losses.push_back(sums.loss / batch.count);
    reference::Update(options.optimizer, sums.gradient, batch.count, &trajectory.state);
  }
  return trajectory;
}

double RootMeanSquareError(const std::vector<float>& got, const std::vector<double>& want) {
  double sum = 0;
  for (size_t i = 0; i < got.size(); ++i) sum += (got[i] - want[i]) * (got[i] - want[i]);
  return std::sqrt(sum / static_cast<double>(got.size()));
}

struct Course {
  Dataset dataset;
  BackendOptions options;
  Trajectory want;
};

// 41 steps an epoch, the last one smaller: the course crosses an epoch's end.
const Course& CourseFor(OptimizerSpec::Kind kind) {
  static auto* const courses = new std::map<OptimizerSpec::Kind, Course>;
  if (courses->find(kind) == courses->end()) {
    Course& course = (*courses)[kind];
    course.dataset = MakeDataset({28, 28, 10, 651, 3, 80});
    course.options = MakeOptions({784, 128, 10}, course.dataset, 16);
    course.options.optimizer.kind = kind;
    if (kind == OptimizerSpec::Kind::kSgd) course.options.optimizer.learning_rate = 0.05f;
    course.want =
        TrainReference(course.options, course.dataset, InitialState(course.options.model, 5));
  }
  return courses->at(kind);
}

// Adam divides by the root of the second moment, so where a gradient is nearly zero its rounding
// error is as large as the step: the parameters are compared as a whole, in units of the learning
// rate, and the loss, which hardly feels such a parameter, to 1e-5.
void TrainBesideReference(const std::vector<std::unique_ptr<Backend>>& ranks, const Course& course,
                          double parameter_tolerance) {
  const SamplingPlan& plan = course.options.plan;
  for (const auto& rank : ranks) {
    ASSERT_EQ(rank->SetState(InitialState(course.options.model, 5)), absl::OkStatus());
  }
  for (uint32_t step = 0; step < kSteps; ++step) {
    const uint32_t epoch = step / plan.steps_per_epoch();
    const PositionRange batch = plan.Batch(step % plan.steps_per_epoch());
    const StepRecord record = WorldStep(ranks, epoch, batch).record;
    const double want = course.want.losses[step];
    ASSERT_NEAR(record.mean_loss(), want, 1e-5 * want) << "step " << step;
  }
  EXPECT_LT(course.want.losses.back(), 0.7 * course.want.losses.front()) << "nothing was learnt";
  const auto state = ranks[0]->GetState();
  ASSERT_EQ(state.status(), absl::OkStatus());
  EXPECT_EQ(state->step, kSteps);
  EXPECT_LT(RootMeanSquareError(state->parameters, course.want.state.parameters),
            parameter_tolerance);
  EXPECT_LT(RootMeanSquareError(state->first_moment, course.want.state.first_moment), 1e-6);
  EXPECT_LT(RootMeanSquareError(state->second_moment, course.want.state.second_moment), 1e-8);
}

TEST_P(BackendNumericsTest, FiftyAdamStepsBesideTheReference) {
  const Course& course = CourseFor(OptimizerSpec::Kind::kAdam);
  const double tolerance = 0.01 * course.options.optimizer.learning_rate;
  TrainBesideReference(MakeWorld(1, course.options, course.dataset), course, tolerance);
}

TEST_P(BackendNumericsTest, FiftyAdamStepsOnThreeRanksBesideTheReference) {
  const Course& course = CourseFor(OptimizerSpec::Kind::kAdam);
  const double tolerance = 0.01 * course.options.optimizer.learning_rate;
  TrainBesideReference(MakeWorld(3, course.options, course.dataset), course, tolerance);
}

TEST_P(BackendNumericsTest, FiftySgdStepsBesideTheReference) {
  const Course& course = CourseFor(OptimizerSpec::Kind::kSgd);
  TrainBesideReference(MakeWorld(1, course.options, course.dataset), course, 1e-6);
}

// One update from a state with moments: each parameter on its own, none near a zero of the root.
TEST_P(BackendNumericsTest, OneAdamUpdateToTheLastDigits) {
  const Dataset dataset = MakeDataset({.rows = 3, .columns = 5, .classes = 3, .train = 30});
  BackendOptions options = MakeOptions({15, 7, 3}, dataset, 8);
  options.optimizer.learning_rate = 0.003f;
  options.optimizer.beta1 = 0.8f;
  options.optimizer.beta2 = 0.99f;
  options.optimizer.epsilon = 1e-4f;
  const auto backend = Make(options, dataset);
  const TrainState start = BusyState(options.model, 31);
  ASSERT_EQ(backend->SetState(start), absl::OkStatus());
  StepWork work;
  work.slice = {0, 8};
  ASSERT_EQ(backend->ComputeGradient(work), absl::OkStatus());
  const std::vector<float> gradient = ReadGradient(*backend, options.model);
  Finish(*backend);

  reference::State want = reference::FromTrainState(start);
  reference::Update(options.optimizer, {gradient.begin(), gradient.end()}, 8, &want);
  const auto got = backend->GetState();
  ASSERT_EQ(got.status(), absl::OkStatus());
  EXPECT_EQ(got->step, want.step);
  for (size_t i = 0; i < want.parameters.size(); ++i) {
    const double move = std::abs(want.parameters[i] - start.parameters[i]);
    ASSERT_NEAR(got->parameters[i], want.parameters[i], 1e-6 * move + 6e-8) << i;
    ASSERT_NEAR(got->first_moment[i], want.first_moment[i],
                3e-7 * (std::abs(want.first_moment[i]) + std::abs(gradient[i] / 8)))
        << i;
    ASSERT_NEAR(got->second_moment[i], want.second_moment[i], 1e-6 * want.second_moment[i]) << i;
  }
}

// The sum of the ranks' gradients is one rank's gradient, whatever the world size.
TEST_P(BackendNumericsTest, SlicesSumToTheWholeBatch) {
  const Dataset dataset = MakeDataset({28, 28, 10, 500, 3, 80});
  const BackendOptions options = MakeOptions({784, 128, 10}, dataset, 128);
  const TrainState state = BusyState(options.model, 41);
  const PositionRange batch = options.plan.Batch(1);
  const auto one = Make(options, dataset);
  ASSERT_EQ(one->SetState(state), absl::OkStatus());
  StepWork work;
  work.slice = batch;
  ASSERT_EQ(one->ComputeGradient(work), absl::OkStatus());
  const std::vector<float> whole = ReadGradient(*one, options.model);
  const std::vector<double> want(whole.begin(), whole.end());
  const StepRecord whole_record = ReadOwnRecord(*one);

  for (const uint32_t world_size : {2u, 3u, 5u}) {
    SCOPED_TRACE(world_size);
    std::vector<float> sum(want.size());
    StepRecord total;
    for (uint32_t rank = 0; rank < world_size; ++rank) {
      work.slice = SliceForRank(batch, rank, world_size);
      ASSERT_EQ(one->ComputeGradient(work), absl::OkStatus());
      const std::vector<float> part = ReadGradient(*one, options.model);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
      const StepRecord record = ReadOwnRecord(*one);
      total.digest += record.digest;
      total.samples += record.samples;
      total.correct += record.correct;
      total.loss_sum_quanta += record.loss_sum_quanta;
    }
    ExpectGradientNear(options.model, 128, sum, want);
    EXPECT_EQ(total.digest, whole_record.digest);
    EXPECT_EQ(total.samples, 128u);
    EXPECT_EQ(total.correct, whole_record.correct);
    EXPECT_NEAR(total.loss_sum(), whole_record.loss_sum(), 1e-6 * whole_record.loss_sum());
  }
}

INSTANTIATE_TEST_SUITE_P(All, BackendNumericsTest, testing::ValuesIn(BackendImplementations()),
                         ImplementationName);

}  // namespace
}  // namespace ringmaster
