// See cublas_v2.h.
#include "tests/kernels/cuda_emulation/cublas_v2.h"
#include "tests/kernels/cuda_emulation/cuda_runtime.h"

struct EmulatedCublas {
  cudaStream_t stream = nullptr;
};

namespace {

struct Operand {
  const float* data;
  int stride;
  bool transposed;

  float At(int row, int column) const {
    return transposed ? data[size_t(row) * stride + column] : data[size_t(column) * stride + row];
  }
};

struct Product {
  int m, n, k;
  float alpha, beta;
  Operand a, b;
  float* c;
  int c_stride;

  void Compute() const {
    for (int column = 0; column < n; ++column) {
      for (int row = 0; row < m; ++row) {
        float sum = 0;
        for (int i = 0; i < k; ++i) sum += a.At(row, i) * b.At(i, column);
        float* const out = c + size_t(column) * c_stride + row;
        // Without beta, c is not read: it may hold anything.
        *out = beta == 0 ? alpha * sum : alpha * sum + beta * *out;
      }
    }
  }
};

}  // namespace

const char* cublasGetStatusString(cublasStatus_t /*status*/) { return "emulated"; }

cublasStatus_t cublasGetProperty(libraryPropertyType /*type*/, int* value) {
  *value = 0;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  *handle = new EmulatedCublas;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace(cublasHandle_t /*handle*/, void* /*workspace*/,
                                  size_t /*bytes*/) {
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t /*handle*/, cublasMath_t /*mode*/) {
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetAtomicsMode(cublasHandle_t /*handle*/, cublasAtomicsMode_t /*mode*/) {
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetPointerMode(cublasHandle_t /*handle*/, cublasPointerMode_t /*mode*/) {
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSgemm(cublasHandle_t handle, cublasOperation_t transpose_a,
                           cublasOperation_t transpose_b, int m, int n, int k, const float* alpha,
                           const float* a, int a_stride, const float* b, int b_stride,
                           const float* beta, float* c, int c_stride) {
  const Product product = {m,
                           n,
                           k,
                           *alpha,
                           *beta,
                           {a, a_stride, transpose_a == CUBLAS_OP_T},
                           {b, b_stride, transpose_b == CUBLAS_OP_T},
                           c,
                           c_stride};
  emulation::Enqueue(handle->stream, [product] { product.Compute(); });
  return CUBLAS_STATUS_SUCCESS;
}
