// Dense fp32 matrix products of the CUDA backend: cuBLAS, without TF32.
//
// Matrices are row-major without padding, in device memory. Products are enqueued on the stream
// given at creation; the workspace is ours, so that nothing is allocated later and the products can
// be captured in a graph. The same product gives the same bits.
//
// Thread safety: one thread at a time.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/handles.h"

namespace ringmaster {

class CudaMatrix {
 public:
  // Borrows the stream. Codes as CublasStatus.
  static absl::StatusOr<CudaMatrix> Create(cudaStream_t stream);

  // c is [m, n], and k the length that is summed over; all at least 1. With `accumulate`, c +=
  // instead of c =. Codes as CublasStatus.
  // c = a b, a: [m, k], b: [k, n]
  absl::Status Multiply(int m, int n, int k, const float* a, const float* b, float* c);
  // c = a^T b, a: [k, m], b: [k, n]
  absl::Status MultiplyTransposedA(int m, int n, int k, const float* a, const float* b,
                                   bool accumulate, float* c);
  // c = a b^T, a: [m, k], b: [n, k]
  absl::Status MultiplyTransposedB(int m, int n, int k, const float* a, const float* b, float* c);

  // "cuBLAS 13.0.2"
  static std::string Version();

 private:
  DeviceArray<char> workspace_;  // outlives the handle that uses it
  CublasHandle handle_;
};

}  // namespace ringmaster
