// Turns the failures of CUDA and cuBLAS calls into statuses that name the call.
//
// Thread safety: pure functions.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "common/status_macros.h"

namespace ringmaster {

// RESOURCE_EXHAUSTED: out of device memory. INTERNAL: anything else; after a fault of a kernel
// every later call of this process fails too.
absl::Status CudaStatus(cudaError_t error, const char* call);
absl::Status CublasStatus(cublasStatus_t error, const char* call);

}  // namespace ringmaster

#define RM_CUDA_RETURN_IF_ERROR(call) RM_RETURN_IF_ERROR(::ringmaster::CudaStatus((call), #call))
#define RM_CUBLAS_RETURN_IF_ERROR(call) \
  RM_RETURN_IF_ERROR(::ringmaster::CublasStatus((call), #call))
