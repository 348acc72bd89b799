// PersistentTrainer: trains a two-layer perceptron on one GPU with many steps in each launch of one
// kernel, which occupies one thread-block cluster (kernel.cuh says how it works). It is for world
// size 1 and small models, where the latency of launches and of memory is what a step costs.
//
// Work is enqueued on a stream of its own; only Collect(), GetState() and SetState() wait for it.
// Results are fp32-grade (each product keeps at least 22 bits of both operands; sums are fp32) and,
// for one seed, the same to the bit in every run on one kind of GPU.
//
// Thread safety: one thread uses a trainer at a time; RequestStop() and Progress() may be called
// from any thread. Ownership: everything on the device is owned by the trainer; the data set is
// copied.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/dataset.h"
#include "common/model.h"
#include "common/sampling_plan.h"
#include "common/step_tail.h"
#include "kernels/cuda/persistent/kernel.h"

namespace ringmaster {

struct PersistentOptions {
  ModelSpec model;  // {inputs, 128, classes up to 11}; 64 hidden units too
  OptimizerSpec optimizer;
  SamplingPlan plan;  // global batch up to 128
  int device = 0;     // CUDA ordinal
  int world_size = 1;
  // `blocks` is set from the model. The rest is for benchmarks.
  persistent::Variant variant;
  bool profile = false;  // measure the stages of a step; see Profile()
};

// What Collect() hands over.
struct PersistentResults {
  std::vector<StepRecord> steps;        // of the training steps that took effect, in order
  std::vector<StepRecord> evaluations;  // one for each EnqueueEvaluation(); no digest
  bool stopped = false;                 // a stop was requested before all steps were done
};

class PersistentTrainer {
 public:
  // Empty if the kernel can do this, else the reason why not, for people. Looks at the device, and
  // not at the data.
  static std::string WhyUnsupported(const PersistentOptions& options);

  // FAILED_PRECONDITION: WhyUnsupported() has a reason, or too many pixels vary in the training
  // images (more than persistent::kMaxLivePixels). INVALID_ARGUMENT: the data set does not fit the
  // model or the plan. RESOURCE_EXHAUSTED: out of device memory. INTERNAL: another CUDA error.
  static absl::StatusOr<std::unique_ptr<PersistentTrainer>> Create(const PersistentOptions& options,
                                                                   const Dataset& dataset);
  virtual ~PersistentTrainer() = default;

  // Replaces the state; waits first. INVALID_ARGUMENT if a size does not match the model.
  // FAILED_PRECONDITION if a moment of a pixel that is always zero is not zero: this kernel would
  // leave those weights alone.
  virtual absl::Status SetState(const TrainState& state) = 0;
  // Waits and copies the state out. INTERNAL if the device failed.
  virtual absl::StatusOr<TrainState> GetState() = 0;

  // Enqueues steps [first_step, first_step + count) of `epoch` as one launch. OUT_OF_RANGE if the
  // epoch does not have them.
  virtual absl::Status EnqueueSteps(uint32_t epoch, uint32_t first_step, uint32_t count) = 0;
  // Enqueues a pass over the test images with the parameters of that moment.
  virtual absl::Status EnqueueEvaluation() = 0;
  // Waits for everything enqueued and returns the records since the last call. INTERNAL if the
  // device failed.
  virtual absl::StatusOr<PersistentResults> Collect() = 0;

  // From any thread: the launch in flight ends before one of its next two updates, and launches
  // after it do nothing, until Collect() has returned.
  virtual void RequestStop() noexcept = 0;
  // From any thread: the step of the epoch that the launch in flight has begun.
  virtual uint32_t Progress() const noexcept = 0;

  // Clock cycles spent in each persistent::Stage by the first warp of the first block, summed over
  // the steps of the last launch. FAILED_PRECONDITION unless options.profile.
  virtual absl::StatusOr<std::vector<int64_t>> Profile() = 0;
  // The stream that the work is enqueued on, as a cudaStream_t.
  virtual void* stream() = 0;
  // Pixels that are not zero in some training image.
  virtual int live_pixels() const = 0;
};

}  // namespace ringmaster
