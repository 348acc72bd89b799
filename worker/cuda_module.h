// The interface of libringmaster_cuda.so: the CUDA backend and the NCCL communicator, opened at run
// time so that the same worker runs on machines without any CUDA library.
//
// Both sides are built from the same tree; `abi` (the project version and build) is compared, not
// assumed. Thread safety: the functions may be called from any thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/backend.h"
#include "worker/communicator.h"
#include "worker/interrupt.h"

namespace ringmaster {

struct CudaDevice {
  std::string name;    // "NVIDIA H100 80GB HBM3"
  std::string bus_id;  // "0000:01:00.0"
  int compute_major = 0;
  int compute_minor = 0;
  uint64_t memory_bytes = 0;
};

struct NcclOptions {
  std::string unique_id;  // the bytes of an ncclUniqueId made by rank 0 for this generation
  int rank = 0;
  int world_size = 1;
  int device = 0;
  void* stream = nullptr;  // Backend::stream()
  // For building the communicator, and for putting a collective on the stream.
  absl::Duration timeout = absl::Seconds(60);
  // Ends the building with ABORTED; may be null. Not used afterwards.
  Interrupt* interrupt = nullptr;
};

inline constexpr int kCudaModuleAbi = 2;

struct CudaModule {
  int abi;  // kCudaModuleAbi of the tree it was built from
  // Versions of CUDA runtime, cuBLAS, NCCL, for people.
  std::string (*versions)();
  // The GPUs this process can use. UNAVAILABLE, with the reason, when there is none or the driver
  // is missing or too old; never an empty list.
  absl::StatusOr<std::vector<CudaDevice>> (*devices)();
  absl::StatusOr<std::unique_ptr<Backend>> (*create_backend)(const BackendOptions&, const Dataset&);
  absl::StatusOr<std::string> (*create_nccl_unique_id)();
  // Returns when every rank has joined. Codes as Communicator::AllReduceSum.
  absl::StatusOr<std::unique_ptr<Communicator>> (*create_nccl_communicator)(const NcclOptions&);
};

// The one exported symbol, with C linkage.
inline constexpr char kCudaModuleSymbol[] = "ringmaster_cuda_module";
using CudaModuleFunction = const CudaModule* (*)();

}  // namespace ringmaster
