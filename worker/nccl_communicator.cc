#include "worker/nccl_communicator.h"

#include <cuda_runtime_api.h>

#include <cstring>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/check.h"

namespace ringmaster {
namespace {

// For taking a communicator down that nothing is wrong with.
constexpr absl::Duration kFinalizeTimeout = absl::Seconds(5);

absl::StatusCode CodeOf(ncclResult_t result) {
  switch (result) {
    case ncclRemoteError:
    case ncclSystemError:
      return absl::StatusCode::kUnavailable;
    case ncclInvalidArgument:
    case ncclInvalidUsage:
      return absl::StatusCode::kInvalidArgument;
    default:
      return absl::StatusCode::kInternal;
  }
}

// ncclCommAbort tells the kernels to leave at once, then waits for them, for NCCL's threads and for
// any graph: on a thread of its own, that may outlast the communicator. Where no thread can be had,
// the collective runs on until the process ends.
void AbortInBackground(ncclComm_t handle, int device) noexcept {
  try {
    std::thread([handle, device] {
      cudaSetDevice(device);
      ncclCommAbort(handle);
    }).detach();
  } catch (const std::system_error&) {
  }
}

absl::StatusOr<ncclUniqueId> ParseUniqueId(const std::string& bytes) {
  ncclUniqueId id;
  if (bytes.size() != sizeof(id.internal)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a unique id of ", bytes.size(), " bytes, wanted ", sizeof(id.internal)));
  }
  std::memcpy(id.internal, bytes.data(), bytes.size());
  return id;
}

}  // namespace

absl::StatusOr<std::unique_ptr<NcclCommunicator>> NcclCommunicator::Create(
    const NcclOptions& options) {
  if (options.rank < 0 || options.rank >= options.world_size || options.stream == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", options.rank, " of ", options.world_size, " with stream ",
                     options.stream == nullptr ? "null" : "set",
                     ": wanted a rank below the world size and a stream"));
  }
  auto communicator = std::unique_ptr<NcclCommunicator>(new NcclCommunicator(options));
  const absl::Status joined = communicator->Join();
  if (joined.ok()) return communicator;
  communicator->Abort();  // there is nothing to finish together
  return joined;
}

absl::StatusOr<std::string> NcclCommunicator::CreateUniqueId() {
  ncclUniqueId id;
  const ncclResult_t result = ncclGetUniqueId(&id);
  if (result != ncclSuccess) {
    return absl::UnavailableError(absl::StrCat("ncclGetUniqueId: ", ncclGetErrorString(result),
                                               ": ", ncclGetLastError(nullptr)));
  }
  return std::string(id.internal, sizeof(id.internal));
}

std::string NcclCommunicator::Version() {
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess) return "NCCL";
  return absl::StrCat("NCCL ", version / 10000, ".", version % 10000 / 100, ".", version % 100);
}

absl::Status NcclCommunicator::Join() {
  const absl::Time deadline = absl::Now() + options_.timeout;
  RM_ASSIGN_OR_RETURN(const ncclUniqueId id, ParseUniqueId(options_.unique_id));
  RM_CUDA_RETURN_IF_ERROR(cudaSetDevice(options_.device));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  {
    MutexLock lock(&mutex_);
    const ncclResult_t result =
        ncclCommInitRankConfig(&handle_, options_.world_size, id, options_.rank, &config);
    if (result != ncclSuccess && result != ncclInProgress) {
      return ErrorFrom(result, "ncclCommInitRankConfig");
    }
  }
  const Interrupt::Scope scope(options_.interrupt, [this] { Abort(); });
  return WaitUntilReady(deadline, "joining the other ranks");
}

NcclCommunicator::~NcclCommunicator() {
  bool finalizing = false;
  {
    MutexLock lock(&mutex_);
    if (handle_ == nullptr) return;
    const ncclResult_t result = ncclCommFinalize(handle_);
    finalizing = result == ncclSuccess || result == ncclInProgress;
  }
  if (!finalizing || !WaitUntilReady(absl::Now() + kFinalizeTimeout, "leaving the others").ok()) {
    Abort();
    return;
  }
  MutexLock lock(&mutex_);
  if (handle_ != nullptr) ncclCommDestroy(handle_);
}

ncclResult_t NcclCommunicator::State() {
  ncclResult_t state = ncclSuccess;
  const ncclResult_t result = ncclCommGetAsyncError(handle_, &state);
  return result == ncclSuccess ? state : result;
}

absl::Status NcclCommunicator::WaitUntilReady(absl::Time deadline, const char* what) {
  while (true) {
    {
      MutexLock lock(&mutex_);
      if (handle_ == nullptr) return Aborted();
      const ncclResult_t state = State();
      if (state == ncclSuccess) return absl::OkStatus();
      if (state != ncclInProgress) return ErrorFrom(state, what);
    }
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("rank ", options_.rank, " of ", options_.world_size, ": NCCL is still ",
                       what, ": a rank is gone or out of reach (NCCL_DEBUG=INFO tells more)"));
    }
    std::this_thread::yield();
  }
}

absl::Status NcclCommunicator::ErrorFrom(ncclResult_t result, const char* what) {
  return absl::Status(
      CodeOf(result),
      absl::StrCat("rank ", options_.rank, " of ", options_.world_size, ": ", what, ": ",
                   ncclGetErrorString(result), ": ", ncclGetLastError(handle_)));
}

absl::Status NcclCommunicator::Aborted() const {
  return absl::AbortedError(absl::StrCat("rank ", options_.rank, " of ", options_.world_size,
                                         ": the all-reduce was aborted"));
}

absl::Status NcclCommunicator::AllReduceSum(DeviceSpan data) {
  const ncclDataType_t type = data.element == Element::kInt64 ? ncclInt64 : ncclFloat32;
  RM_CUDA_RETURN_IF_ERROR(cudaSetDevice(options_.device));
  {
    MutexLock lock(&mutex_);
    if (handle_ == nullptr) return Aborted();
    const ncclResult_t result = ncclAllReduce(data.data, data.data, data.count, type, ncclSum,
                                              handle_, static_cast<cudaStream_t>(options_.stream));
    if (result == ncclSuccess) return absl::OkStatus();
    if (result != ncclInProgress) return ErrorFrom(result, "ncclAllReduce");
  }
  // Until then it may not be on the stream, and what follows must come after it.
  return WaitUntilReady(absl::Now() + options_.timeout, "enqueuing an all-reduce");
}

absl::Status NcclCommunicator::Poll() {
  MutexLock lock(&mutex_);
  if (handle_ == nullptr) return Aborted();
  const ncclResult_t state = State();
  if (state == ncclSuccess || state == ncclInProgress) return absl::OkStatus();
  return ErrorFrom(state, "all-reduce");
}

void NcclCommunicator::Abort() noexcept {
  MutexLock lock(&mutex_);
  if (handle_ != nullptr) AbortInBackground(std::exchange(handle_, nullptr), options_.device);
}

}  // namespace ringmaster
