// SoloCommunicator: the communicator of a world of one. Its sum is what it was given.
//
// Thread safety: as Communicator.
#pragma once

#include <atomic>

#include "worker/communicator.h"

namespace ringmaster {

class SoloCommunicator : public Communicator {
 public:
  int rank() const override { return 0; }
  int world_size() const override { return 1; }
  const char* name() const override { return "solo"; }

  // ABORTED after Abort(), otherwise OK.
  absl::Status AllReduceSum(DeviceSpan /*data*/) override {
    return aborted_ ? absl::AbortedError("the communicator of rank 0 of 1 was aborted")
                    : absl::OkStatus();
  }
  void Abort() noexcept override { aborted_ = true; }

 private:
  std::atomic<bool> aborted_{false};
};

}  // namespace ringmaster
