// The CUDA backend: kernels/backend.h on one GPU, with cuBLAS for the dense products and own
// kernels for everything else.
//
// A step only enqueues; it allocates nothing and waits for nothing. The data set lies in device
// memory as bytes, and which samples are gathered is computed there. Calls that wait give up with
// DEADLINE_EXCEEDED after a minute: an all-reduce on the stream may wait for a rank that is gone.
//
// Thread safety and ownership: as Backend. The data set is copied.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "common/dataset.h"
#include "kernels/backend.h"

namespace ringmaster {

struct CudaTuning {
  // Samples computed together; larger slices are computed chunk by chunk. Wide models get fewer.
  uint32_t max_chunk_rows = 8192;
};

// INVALID_ARGUMENT: the model does not fit the data set, or there is no such device.
// RESOURCE_EXHAUSTED: out of device memory. INTERNAL: any other failure of CUDA.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const BackendOptions& options,
                                                           const Dataset& dataset);
// With its choices made by the caller: for tests.
absl::StatusOr<std::unique_ptr<Backend>> CreateTunedCudaBackend(const BackendOptions& options,
                                                                const Dataset& dataset,
                                                                const CudaTuning& tuning);

}  // namespace ringmaster
