// What only the CUDA backend does, on the emulation: chunks, steps in flight, a poison that
// overtakes them.

#include "kernels/cuda/cuda_backend.h"

#include <latch>

#include "gtest/gtest.h"
#include "tests/kernels/backend_fixture.h"
#include "tests/kernels/cuda_emulation/cuda_runtime.h"

namespace ringmaster {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(60);

class CudaBackendTest : public testing::Test {
 protected:
  CudaBackendTest() : options_(MakeOptions({6, 5, 3}, dataset_, 8)) {}

  std::unique_ptr<Backend> Make(uint32_t max_chunk_rows) const {
    auto backend = CreateTunedCudaBackend(options_, dataset_, {max_chunk_rows});
    EXPECT_EQ(backend.status(), absl::OkStatus());
    EXPECT_EQ((*backend)->SetState(BusyState(options_.model, 3)), absl::OkStatus());
    return *std::move(backend);
  }

  // Step `step` of epoch 0, as far as the host goes.
  absl::Status EnqueueStep(Backend& backend, uint32_t step) const {
    StepWork work;
    work.slice = options_.plan.Batch(step);
    const absl::Status status = backend.ComputeGradient(work);
    return status.ok() ? backend.ApplyUpdate() : status;
  }

  const Dataset dataset_ =
      MakeDataset({.rows = 2, .columns = 3, .classes = 3, .train = 400, .test = 50});
  const BackendOptions options_;
};

TEST_F(CudaBackendTest, ChunksAddUpToTheSlice) {
  const auto whole = Make(8192);
  const auto chunked = Make(7);
  StepWork work;
  work.slice = {3, 41};  // five chunks of 7 and one of 6
  ASSERT_EQ(whole->ComputeGradient(work), absl::OkStatus());
  ASSERT_EQ(chunked->ComputeGradient(work), absl::OkStatus());
  const std::vector<float> want = ReadGradient(*whole, options_.model);
  const std::vector<float> got = ReadGradient(*chunked, options_.model);
  for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-5) << i;
  EXPECT_EQ(ReadOwnRecord(*chunked), ReadOwnRecord(*whole));

  ASSERT_EQ(whole->ComputeEvaluation({1, 30}), absl::OkStatus());
  ASSERT_EQ(chunked->ComputeEvaluation({1, 30}), absl::OkStatus());
  EXPECT_EQ(ReadOwnRecord(*chunked), ReadOwnRecord(*whole));
  EXPECT_EQ(*chunked->Predict(Split::kTrain, {5, 40}), *whole->Predict(Split::kTrain, {5, 40}));
}

TEST_F(CudaBackendTest, RecordsOfStepsInFlightComeInOrder) {
  const auto backend = Make(8192);
  const auto steps = static_cast<uint32_t>(backend->max_in_flight());
  std::vector<ReducedRecord> records;
  for (uint32_t step = 0; step < steps; ++step) {
    ASSERT_EQ(EnqueueStep(*backend, step), absl::OkStatus());
    if (step % 3 != 0) continue;
    auto some = backend->Collect(/*all=*/false, kTimeout);
    ASSERT_EQ(some.status(), absl::OkStatus());
    records.insert(records.end(), some->begin(), some->end());
  }
  auto rest = backend->Collect(/*all=*/true, kTimeout);
  ASSERT_EQ(rest.status(), absl::OkStatus());
  records.insert(records.end(), rest->begin(), rest->end());
  ASSERT_EQ(records.size(), steps);
  for (uint32_t step = 0; step < steps; ++step) {
    const auto samples = SamplesAt(options_.plan, 0, options_.plan.Batch(step));
    EXPECT_EQ(records[step].record.digest, DigestOf(samples)) << step;
  }
  EXPECT_TRUE(backend->Collect(/*all=*/true, kTimeout)->empty());
  EXPECT_EQ(backend->GetState()->step, 3 + steps);
}

TEST_F(CudaBackendTest, MoreStepsInFlightThanThereMayBeAreRefused) {
  const auto backend = Make(8192);
  const auto steps = static_cast<uint32_t>(backend->max_in_flight());
  for (uint32_t step = 0; step < steps; ++step) {
    ASSERT_EQ(EnqueueStep(*backend, step), absl::OkStatus());
  }
  EXPECT_EQ(EnqueueStep(*backend, steps).code(), absl::StatusCode::kFailedPrecondition);
  // Leaves room for one more.
  const auto some = backend->Collect(/*all=*/false, kTimeout);
  ASSERT_EQ(some.status(), absl::OkStatus());
  EXPECT_FALSE(some->empty());
  EXPECT_EQ(EnqueueStep(*backend, steps), absl::OkStatus());
  EXPECT_EQ(backend->Collect(/*all=*/true, kTimeout)->size(), steps + 1 - some->size());
}

// Each step takes effect as a whole or not at all, and none after the first that did not.
TEST_F(CudaBackendTest, APoisonStopsTheStepsThatItOvertakes) {
  const auto poisoned = Make(8192);
  for (const uint32_t step : {0, 1}) ASSERT_EQ(EnqueueStep(*poisoned, step), absl::OkStatus());
  EXPECT_EQ(poisoned->Collect(/*all=*/true, kTimeout)->size(), 2u);
  // As an all-reduce that waits for a peer would, this holds the stream.
  std::latch gate(1);
  emulation::Enqueue(static_cast<cudaStream_t>(poisoned->stream()), [&] { gate.wait(); });
  for (const uint32_t step : {2, 3, 4}) {
    ASSERT_EQ(EnqueueStep(*poisoned, step), absl::OkStatus());
  }
  poisoned->Poison();
  gate.count_down();
  const auto state = poisoned->GetState();
  ASSERT_EQ(state.status(), absl::OkStatus());
  EXPECT_EQ(state->step, 3u + 2u);
  EXPECT_EQ(poisoned->Collect(/*all=*/true, kTimeout).status().code(), absl::StatusCode::kAborted);

  const auto healthy = Make(8192);
  for (uint32_t step = 0; step < 2; ++step) {
    ASSERT_EQ(EnqueueStep(*healthy, step), absl::OkStatus());
  }
  EXPECT_EQ(*healthy->GetState(), *state);
}

// The first update throws the weights far out; the second step finds a gradient out of range when
// three more are enqueued already.
TEST_F(CudaBackendTest, AGradientOutOfRangeStopsTheStepsThatAreInFlight) {
  BackendOptions options = options_;
  options.reproducible = true;
  options.plan.granularity = SliceGranularity(true);
  options.optimizer.kind = OptimizerSpec::Kind::kSgd;
  options.optimizer.learning_rate = 1e20f;
  auto created = CreateCudaBackend(options, dataset_);
  ASSERT_EQ(created.status(), absl::OkStatus());
  Backend& backend = **created;
  ASSERT_EQ(backend.SetState(BusyState(options.model, 3)), absl::OkStatus());
  for (uint32_t step = 0; step < 5; ++step) {
    ASSERT_EQ(EnqueueStep(backend, step), absl::OkStatus());
  }
  EXPECT_EQ(backend.Collect(/*all=*/true, kTimeout).status().code(), absl::StatusCode::kOutOfRange);
  const auto state = backend.GetState();
  ASSERT_EQ(state.status(), absl::OkStatus());
  EXPECT_EQ(state->step, 3u + 1u);

  // Poisoned by hand it is aborted, as ever; and a new world is clean.
  ASSERT_EQ(backend.SetWorld(0, 1), absl::OkStatus());
  backend.Poison();
  EXPECT_EQ(backend.Collect(/*all=*/true, kTimeout).status().code(), absl::StatusCode::kAborted);
}

TEST_F(CudaBackendTest, AStepThatHangsIsGivenUp) {
  const auto backend = Make(8192);
  std::latch gate(1);
  emulation::Enqueue(static_cast<cudaStream_t>(backend->stream()), [&] { gate.wait(); });
  ASSERT_EQ(EnqueueStep(*backend, 0), absl::OkStatus());
  EXPECT_EQ(backend->Collect(/*all=*/true, absl::Milliseconds(20)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  gate.count_down();
  EXPECT_EQ(backend->Collect(/*all=*/true, kTimeout)->size(), 1u);
}

TEST_F(CudaBackendTest, AnEvaluationAfterAPoisonPublishesNothing) {
  const auto backend = Make(8192);
  backend->Poison();
  ASSERT_EQ(backend->ComputeEvaluation({0, 50}), absl::OkStatus());
  ASSERT_EQ(backend->FinishEvaluation(), absl::OkStatus());
  EXPECT_EQ(backend->Collect(/*all=*/true, kTimeout).status().code(), absl::StatusCode::kAborted);
}

TEST_F(CudaBackendTest, ADeviceThatIsNotThereIsRefused) {
  BackendOptions options = options_;
  options.device = 7;
  const auto backend = CreateCudaBackend(options, dataset_);
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(backend.status().message().find("device 7"), std::string::npos);
}

}  // namespace
}  // namespace ringmaster
