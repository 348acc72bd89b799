// Communicator: the collectives of one generation of ranks.
//
// Thread safety: one thread calls the collectives; Abort() may be called from any thread, at any
// time, any number of times.
#pragma once

#include "absl/status/status.h"
#include "kernels/device_span.h"

namespace ringmaster {

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int world_size() const = 0;
  // "nccl", "gloo" or "solo".
  virtual const char* name() const = 0;

  // Sums `data` over all ranks, in place: floats, or int64 modulo 2^64. Every rank calls it with
  // the same count and element. After it every rank holds the same bits. An asynchronous
  // communicator (NCCL) enqueues on its stream and returns; others return when the sum is there.
  // UNAVAILABLE: a peer is gone. ABORTED: Abort() was called. DEADLINE_EXCEEDED: a peer did not
  // answer within the communicator's timeout. After an error the buffer is undefined and the
  // communicator can only be destroyed.
  virtual absl::Status AllReduceSum(DeviceSpan data) = 0;

  // Errors of work enqueued earlier, for asynchronous communicators. Does not block. Codes as
  // AllReduceSum.
  virtual absl::Status Poll() { return absl::OkStatus(); }

  // Ends a collective that is running, and fails all later ones, within 10 ms.
  virtual void Abort() noexcept = 0;
};

}  // namespace ringmaster
