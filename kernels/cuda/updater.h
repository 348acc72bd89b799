// What the CUDA backend does around the all-reduce: writes the tail, publishes what was reduced,
// and updates the state. One implementation for floats, one for the integers of reproducible runs.
//
// Everything is enqueued on the stream given at creation; codes are those of CudaStatus. Memory
// given is the device's, and borrowed until the stream has passed. Thread safety: one thread at a
// time.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model.h"
#include "kernels/backend.h"
#include "kernels/cuda/handles.h"
#include "kernels/cuda/kernels.h"
#include "kernels/device_span.h"

namespace ringmaster {

// TrainState in device memory.
struct DeviceState {
  DeviceArray<float> parameters;
  DeviceArray<float> first_moment;
  DeviceArray<float> second_moment;
  DeviceArray<uint64_t> step;  // [1]
};

// What is written to the poison, by the device, when a gradient was out of range: no update after
// it applies. (The host's own poison is 1.)
inline constexpr uint32_t kPoisonedByRange = 2;

class CudaUpdater {
 public:
  virtual ~CudaUpdater() = default;

  // Writes `record` with the flags of `work`, and this rank's times. tail: for world_size ranks.
  virtual absl::Status WriteTail(const cuda::DeviceRecord* record, const StepWork& work,
                                 const RankTimes& times, int rank, int world_size,
                                 DeviceSpan tail) = 0;

  struct Publication {
    DeviceSpan tail;  // reduced
    int world_size = 1;
    uint32_t* poisoned;    // mapped
    DeviceSpan published;  // mapped: becomes a copy of the tail
    uint32_t* intact;      // mapped: becomes 1, or 0 if poisoned
    DeviceState* state;    // null: an evaluation, which updates nothing
  };
  // Publishes, and decides on the update: the poison is read by one thread, so that an update is
  // applied as a whole or not at all. Advances the state's step.
  virtual absl::Status Publish(const Publication& publication) = 0;
  // After Publish(): updates the state by the reduced gradients, if that was decided.
  virtual absl::Status Update(DeviceSpan gradients, DeviceState* state) = 0;
};

absl::StatusOr<std::unique_ptr<CudaUpdater>> CreateCudaUpdater(const OptimizerSpec& optimizer,
                                                               cudaStream_t stream);
// As kernels/exact.h has it.
absl::StatusOr<std::unique_ptr<CudaUpdater>> CreateCudaExactUpdater(const OptimizerSpec& optimizer,
                                                                    cudaStream_t stream);

}  // namespace ringmaster
