// What the backend tests share: the implementations under test, data sets made up for them, and the
// steps of a world of several ranks in one process.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/dataset.h"
#include "common/model.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"

namespace ringmaster {

// "cpu" is what users get; the other CPU members fix the instruction set and the first layer, as
// cpu_<avx512|avx2|portable>_<sparse|dense>; "cuda" is the module of libringmaster_cuda.so, and
// "cuda_emulated" the same sources on the CPU (tests/kernels/cuda_emulation). "exact_cpu",
// "exact_cpu_<avx512|avx2|portable>", "exact_cuda" and "exact_cuda_emulated" are reproducible.
std::vector<std::string> BackendImplementations();
// Those that can train a whole epoch in a test.
std::vector<std::string> FastBackendImplementations();
// The reproducible ones, all of which must have the same bits.
std::vector<std::string> ExactBackendImplementations();
bool IsExact(const std::string& implementation);
bool IsExact(Backend& backend);

// UNAVAILABLE, with the reason, where this machine cannot run the implementation.
absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(const std::string& implementation,
                                                       const BackendOptions& options,
                                                       const Dataset& dataset);

// Its members "cuda" and "cuda_emulated".
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaMember(const BackendOptions& options,
                                                          const Dataset& dataset);
absl::StatusOr<std::unique_ptr<Backend>> CreateEmulatedMember(const BackendOptions& options,
                                                              const Dataset& dataset);

struct DatasetShape {
  int rows = 1;
  int columns = 1;
  int classes = 2;
  uint32_t train = 1;
  uint32_t test = 1;
  int zero_percent = 75;
};

// Noise with a brighter stripe for each class, so that there is something to learn. A pure function
// of the shape.
Dataset MakeDataset(const DatasetShape& shape);

// Options for `layers` over the whole training split.
BackendOptions MakeOptions(const std::vector<int>& layers, const Dataset& dataset,
                           uint32_t global_batch);

// A state with random moments too, at step 3: nothing is accidentally zero.
TrainState BusyState(const ModelSpec& model, uint64_t seed);

// Ids of the samples at the positions of `slice`.
std::vector<uint32_t> SamplesAt(const SamplingPlan& plan, uint32_t epoch, PositionRange slice);
uint64_t DigestOf(const std::vector<uint32_t>& samples);

// The gradients alone, after ComputeGradient.
std::vector<float> ReadGradient(Backend& backend, const ModelSpec& model);
std::vector<char> ReadBytes(Backend& backend, DeviceSpan span);
// This rank's own tail, before any reduction.
ReducedRecord ReadOwnTail(Backend& backend, int world_size);
StepRecord ReadOwnRecord(Backend& backend);

// Runs every rank over its slice of `batch`, sums their buffers in rank order, as a ring would in
// some order, and applies the update everywhere. Returns rank 0's record, having checked
// that every rank has the same.
ReducedRecord WorldStep(const std::vector<std::unique_ptr<Backend>>& ranks, uint32_t epoch,
                        PositionRange batch);
// The same for the evaluation of the test samples of `whole`.
ReducedRecord WorldEvaluation(const std::vector<std::unique_ptr<Backend>>& ranks,
                              PositionRange whole);

// Applies the update and returns the one record it publishes.
ReducedRecord Finish(Backend& backend);

// Skips, visibly, where the implementation cannot run here.
class BackendTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override;

  // In the world of one. Fails the test if it cannot be made.
  std::unique_ptr<Backend> Make(const BackendOptions& options, const Dataset& dataset) const;
  std::vector<std::unique_ptr<Backend>> MakeWorld(int world_size, const BackendOptions& options,
                                                  const Dataset& dataset) const;
};

std::string ImplementationName(const testing::TestParamInfo<std::string>& info);

}  // namespace ringmaster
