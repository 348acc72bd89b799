#include "kernels/cuda/check.h"

#include <string_view>

#include "absl/strings/str_cat.h"

namespace ringmaster {
namespace {

// "cudaMalloc(&pointer, bytes)" is "cudaMalloc".
std::string_view FunctionName(std::string_view call) { return call.substr(0, call.find('(')); }

std::string Message(const char* call, const char* text, const char* name) {
  return absl::StrCat(std::string(FunctionName(call)), ": ", text, " (", name, ")");
}

}  // namespace

absl::Status CudaStatus(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message = Message(call, cudaGetErrorString(error), cudaGetErrorName(error));
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(message)
                                            : absl::InternalError(message);
}

absl::Status CublasStatus(cublasStatus_t error, const char* call) {
  if (error == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  const std::string message = Message(call, cublasGetStatusString(error), "cuBLAS");
  return error == CUBLAS_STATUS_ALLOC_FAILED ? absl::ResourceExhaustedError(message)
                                             : absl::InternalError(message);
}

}  // namespace ringmaster
