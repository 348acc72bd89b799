// The records of steps that are on their way: a ring of slots in pinned memory that the device
// fills, each with the events that time its step. The host looks, and never waits in here.
//
//   Begin(); <enqueue the gradient>; GradientReady(); <enqueue the all-reduce>
//   BeginUpdate(); <enqueue what writes tail() and intact(), and the update>; Publish()
//
// Thread safety: one thread at a time.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/handles.h"

namespace ringmaster {

class RecordRing {
 public:
  // `capacity` slots, for tails of `element` and `world_size` ranks. Borrows the stream. Codes as
  // CudaStatus.
  static absl::StatusOr<RecordRing> Create(int capacity, Element element, int world_size,
                                           cudaStream_t stream);

  int capacity() const { return static_cast<int>(slots_.size()); }
  int outstanding() const { return outstanding_; }

  // Where the device puts the step being enqueued. FAILED_PRECONDITION from Begin() when all slots
  // are outstanding.
  DeviceSpan tail() const;   // [TailSize(element, world_size)], mapped
  uint32_t* intact() const;  // mapped: 0 if the backend was poisoned by then
  absl::Status Begin();      // marks the start of a step's work
  absl::Status GradientReady();
  absl::Status BeginUpdate();
  // An evaluation only publishes: it was not timed.
  absl::Status Publish(bool timed);

  struct Finished {
    bool intact = false;  // false: nothing was applied, and `reduced` means nothing
    ReducedRecord reduced;
    std::optional<RankTimes> times;  // this rank's own, if timed
  };
  // Takes the oldest outstanding step, if there is one and the device is through with it: false if
  // not. Codes as CudaStatus.
  absl::StatusOr<bool> TakeFinished(Finished* finished);

 private:
  enum Mark { kStart, kGradient, kUpdate, kEnd, kMarks };
  struct Slot {
    CudaEvent marks[kMarks];
    bool timed = false;
  };

  absl::Status Record(Mark mark);
  int next() const { return (oldest_ + outstanding_) % capacity(); }
  DeviceSpan TailAt(std::byte* memory, int slot) const;
  absl::StatusOr<RankTimes> TimesOf(const Slot& slot) const;

  cudaStream_t stream_ = nullptr;
  Element element_ = Element::kFloat32;
  int world_size_ = 1;
  std::vector<Slot> slots_;
  MappedArray<std::byte> tails_;  // [capacity, TailSize(element, world_size)]
  MappedArray<uint32_t> intact_;  // [capacity]
  int oldest_ = 0;
  int outstanding_ = 0;
};

}  // namespace ringmaster
