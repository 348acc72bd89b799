// NcclCommunicator: the ranks of one generation over NCCL, one GPU each.
//
// The communicator is non-blocking: NCCL does its host work in threads of its own, so that no call
// in here can be stuck in it and Abort() always gets through. AllReduceSum() returns when the
// collective is on the stream; the host never waits for the sum.
//
// Thread safety: as Communicator. The stream is borrowed and must outlive the communicator.
#pragma once

#include <nccl.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "worker/communicator.h"
#include "worker/cuda_module.h"

namespace ringmaster {

class NcclCommunicator final : public Communicator {
 public:
  // Returns when every rank has joined. INVALID_ARGUMENT: the options contradict themselves, or
  // NCCL refuses them (two ranks on one GPU). DEADLINE_EXCEEDED: not every rank came within
  // options.timeout. UNAVAILABLE: a rank is gone or out of reach. INTERNAL: CUDA failed.
  static absl::StatusOr<std::unique_ptr<NcclCommunicator>> Create(const NcclOptions& options);

  // The bytes of a new ncclUniqueId. This process then listens for the ranks: make one for each
  // generation, in the process of rank 0. UNAVAILABLE: no network interface to listen on.
  static absl::StatusOr<std::string> CreateUniqueId();
  // "NCCL 2.28.9"
  static std::string Version();

  ~NcclCommunicator() override;

  int rank() const override { return options_.rank; }
  int world_size() const override { return options_.world_size; }
  const char* name() const override { return "nccl"; }
  absl::Status AllReduceSum(DeviceSpan data) override;
  absl::Status Poll() override;
  void Abort() noexcept override;

 private:
  explicit NcclCommunicator(const NcclOptions& options) : options_(options) {}

  absl::Status Join();
  // Waits until what was begun is done. Codes as Communicator::AllReduceSum.
  absl::Status WaitUntilReady(absl::Time deadline, const char* what);
  // The state of what was begun; ncclInProgress while it goes on.
  ncclResult_t State() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status ErrorFrom(ncclResult_t result, const char* what)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Aborted() const;

  const NcclOptions options_;
  // NCCL wants one thread at a time in a communicator. Held for single calls only, all of them
  // short.
  Mutex mutex_;
  ncclComm_t handle_ ABSL_GUARDED_BY(mutex_) = nullptr;  // null once aborted
};

}  // namespace ringmaster
