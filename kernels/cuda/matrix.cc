#include "kernels/cuda/matrix.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace ringmaster {
namespace {

// What NVIDIA recommends for Hopper; plenty elsewhere.
constexpr size_t kWorkspaceBytes = size_t{32} << 20;

// cuBLAS is column-major, in which a row-major matrix is its own transpose: so the operands are
// swapped, and what is computed is c^T.
constexpr float kOne = 1;
constexpr float kZero = 0;

}  // namespace

absl::StatusOr<CudaMatrix> CudaMatrix::Create(cudaStream_t stream) {
  CudaMatrix matrix;
  RM_ASSIGN_OR_RETURN(matrix.workspace_, DeviceArray<char>::Create(kWorkspaceBytes));
  cublasHandle_t handle = nullptr;
  RM_CUBLAS_RETURN_IF_ERROR(cublasCreate(&handle));
  matrix.handle_ = CublasHandle(handle);
  // The stream first: setting it would take the workspace away again.
  RM_CUBLAS_RETURN_IF_ERROR(cublasSetStream(handle, stream));
  RM_CUBLAS_RETURN_IF_ERROR(
      cublasSetWorkspace(handle, matrix.workspace_.data(), matrix.workspace_.bytes()));
  RM_CUBLAS_RETURN_IF_ERROR(cublasSetMathMode(handle, CUBLAS_DEFAULT_MATH));
  RM_CUBLAS_RETURN_IF_ERROR(cublasSetAtomicsMode(handle, CUBLAS_ATOMICS_NOT_ALLOWED));
  RM_CUBLAS_RETURN_IF_ERROR(cublasSetPointerMode(handle, CUBLAS_POINTER_MODE_HOST));
  return matrix;
}

absl::Status CudaMatrix::Multiply(int m, int n, int k, const float* a, const float* b, float* c) {
  return CublasStatus(cublasSgemm(handle_.get(), CUBLAS_OP_N, CUBLAS_OP_N, n, m, k, &kOne, b, n, a,
                                  k, &kZero, c, n),
                      "cublasSgemm");
}

absl::Status CudaMatrix::MultiplyTransposedA(int m, int n, int k, const float* a, const float* b,
                                             bool accumulate, float* c) {
  return CublasStatus(cublasSgemm(handle_.get(), CUBLAS_OP_N, CUBLAS_OP_T, n, m, k, &kOne, b, n, a,
                                  m, accumulate ? &kOne : &kZero, c, n),
                      "cublasSgemm");
}

absl::Status CudaMatrix::MultiplyTransposedB(int m, int n, int k, const float* a, const float* b,
                                             float* c) {
  return CublasStatus(cublasSgemm(handle_.get(), CUBLAS_OP_T, CUBLAS_OP_N, n, m, k, &kOne, b, k, a,
                                  k, &kZero, c, n),
                      "cublasSgemm");
}

std::string CudaMatrix::Version() {
  int major = 0;
  int minor = 0;
  int patch = 0;
  if (cublasGetProperty(MAJOR_VERSION, &major) != CUBLAS_STATUS_SUCCESS ||
      cublasGetProperty(MINOR_VERSION, &minor) != CUBLAS_STATUS_SUCCESS ||
      cublasGetProperty(PATCH_LEVEL, &patch) != CUBLAS_STATUS_SUCCESS) {
    return "cuBLAS";
  }
  return absl::StrCat("cuBLAS ", major, ".", minor, ".", patch);
}

}  // namespace ringmaster
