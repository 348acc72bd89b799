// Backend: the arithmetic of one rank. It owns the data on its device, the parameters and optimizer
// state, and the buffer that the ranks all-reduce; the trainer tells it which samples to compute.
//
// A training step is three calls with an all-reduce between the first two:
//   ComputeGradient(slice)          forward and backward over this rank's slice
//   <sum reduce_buffer() over ranks>
//   ApplyUpdate()                   divide by the global sample count, then the optimizer
//   Collect()                       the global record of each finished step
// An asynchronous backend (CUDA) only enqueues work in the first calls, on its stream(), and the
// all-reduce is enqueued on the same stream; Collect() is where the host waits. A synchronous one
// (CPU) has finished each call when it returns.
//
// Thread safety: one thread uses a backend at a time; Poison() may be called from any thread.
// Ownership: the Dataset given at creation is borrowed and must outlive the backend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/dataset.h"
#include "common/model.h"
#include "common/sampling_plan.h"
#include "common/step_tail.h"
#include "kernels/device_span.h"

namespace ringmaster {

enum class Split { kTrain, kTest };

struct BackendOptions {
  ModelSpec model;
  OptimizerSpec optimizer;
  SamplingPlan plan;
  int device = 0;   // CUDA ordinal; ignored on CPU
  int threads = 1;  // CPU threads for the matrix products; ignored on CUDA
  // The arithmetic of kernels/exact.h: the same bits on every backend and at any world size. The
  // slices must then be cut in units of kMicroShard: plan.granularity is SliceGranularity(true).
  bool reproducible = false;
};

// What to compute in one step: this rank's positions of `epoch`, and the flags it raises.
struct StepWork {
  uint32_t epoch = 0;
  PositionRange slice;                    // may be empty
  uint32_t flags[tail::kFlagCount] = {};  // 0 or 1 each
};

// How long a rank took, in microseconds, for the step it measured last before this one.
struct RankTimes {
  float compute_us = 0;     // gradient and update
  float all_reduce_us = 0;  // from the rank's own gradient being ready to the sum being ready
};

// The reduced tail of one step: the same on every rank.
struct ReducedRecord {
  StepRecord record;
  std::vector<RankTimes> rank_times;  // [world_size]; zeros where a rank has not measured yet
};

class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu" or "cuda".
  virtual std::string name() const = 0;
  // For people: device, instruction set, libraries and versions.
  virtual std::string description() const = 0;

  // Sets this rank's place, sizes the tail and zeroes it. Call before the first step and at each
  // new generation, with no work in flight. INVALID_ARGUMENT if rank is not in [0, world_size) or
  // world_size is above tail::kMaxWorldSize. Clears a poisoning.
  virtual absl::Status SetWorld(int rank, int world_size) = 0;

  // Replaces the state; waits for enqueued work first. INVALID_ARGUMENT if a size does not match
  // the model.
  virtual absl::Status SetState(const TrainState& state) = 0;
  // Waits for enqueued work and copies the state out.
  virtual absl::StatusOr<TrainState> GetState() = 0;

  // Gathers the slice's samples by the plan's order, computes the SUM (not mean) of their loss
  // gradients into reduce_buffer()[0, num_parameters) and this rank's part of the tail behind it.
  // Samples, digest and counts in the tail are measured where pixels are gathered.
  virtual absl::Status ComputeGradient(const StepWork& work) = 0;
  // Applies the optimizer to the reduced gradient divided by the reduced sample count, advances
  // `step`, and publishes the record for Collect(). A poisoned backend changes nothing. So does,
  // from then on, every rank of a reproducible run when a gradient of one of them was not a number
  // or out of the range that can be summed exactly: OUT_OF_RANGE, here or, from an asynchronous
  // backend, from Collect(), until SetWorld().
  virtual absl::Status ApplyUpdate() = 0;

  // Forward only over test samples [slice.first, slice.end()), in file order; zeroes the tail and
  // writes this rank's part of it. The gradients are left undefined: only tail_buffer() is reduced.
  virtual absl::Status ComputeEvaluation(PositionRange slice) = 0;
  // Publishes the reduced evaluation record for Collect().
  virtual absl::Status FinishEvaluation() = 0;

  // Returns the records published and not yet collected that are finished, oldest first. With
  // `all` it waits until every published record is; otherwise it waits for one if more than
  // max_in_flight() - 1 are outstanding and returns what is there. DEADLINE_EXCEEDED if that takes
  // longer than `timeout`, ABORTED if the backend was poisoned meanwhile, OUT_OF_RANGE as
  // ApplyUpdate().
  virtual absl::StatusOr<std::vector<ReducedRecord>> Collect(bool all, absl::Duration timeout) = 0;
  // How many published records may be outstanding: 1 on a synchronous backend.
  virtual int max_in_flight() const = 0;

  // The class with the largest logit for each sample of `split` in [slice.first, slice.end()), file
  // order. Waits for enqueued work.
  virtual absl::StatusOr<std::vector<uint8_t>> Predict(Split split, PositionRange slice) = 0;

  // What the ranks sum each step: gradients, then the tail; stable until SetWorld(). Floats, or
  // int64 when reproducible: then gradients in units of exact::kQuantum.
  // [num_parameters + TailSize(element, world_size)]
  virtual DeviceSpan reduce_buffer() = 0;
  // The tail alone: the end of reduce_buffer(). [TailSize(element, world_size)]
  virtual DeviceSpan tail_buffer() = 0;

  // The CUDA stream that all work is enqueued on, as a cudaStream_t; null on CPU.
  virtual void* stream() = 0;

  // For tests and tools: copies between host memory and the backend's own, ordered with the
  // enqueued work, and waits. `host` holds span.count elements.
  virtual absl::Status ReadBuffer(DeviceSpan span, void* host) = 0;
  virtual absl::Status WriteBuffer(const void* host, DeviceSpan span) = 0;

  // From any thread: from now on no update reaches the state (an aborted collective leaves a
  // half-reduced buffer behind). Lasts until SetWorld().
  virtual void Poison() noexcept = 0;
};

// oneDNN on the CPU, or own exact kernels when reproducible. INVALID_ARGUMENT if the model does not
// fit the data set.
absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const BackendOptions& options,
                                                          const Dataset& dataset);

}  // namespace ringmaster
