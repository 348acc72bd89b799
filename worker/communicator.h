// Communicator: the collectives of one generation of ranks.
//
// Thread safety: one thread calls the collectives; Abort() may be called from any thread, at any
// time, any number of times.
#pragma once

#include <cstddef>

#include "absl/status/status.h"

namespace ringmaster {

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int world_size() const = 0;
  // "nccl", "gloo" or "solo".
  virtual const char* name() const = 0;

  // Sums `count` floats at `data` over all ranks, in place. Every rank calls it with the same
  // count. After it every rank holds the same bits. An asynchronous communicator (NCCL) enqueues on
  // its stream and returns; others return when the sum is there. UNAVAILABLE: a peer is gone.
  // ABORTED: Abort() was called. DEADLINE_EXCEEDED: a peer did not answer within the communicator's
  // timeout. After an error the buffer is undefined and the communicator can only be destroyed.
  virtual absl::Status AllReduceSum(float* data, size_t count) = 0;

  // Errors of work enqueued earlier, for asynchronous communicators. Does not block. Codes as
  // AllReduceSum.
  virtual absl::Status Poll() { return absl::OkStatus(); }

  // Ends a collective that is running, and fails all later ones, within 10 ms.
  virtual void Abort() noexcept = 0;
};

}  // namespace ringmaster
