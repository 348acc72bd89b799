// Dense fp32 matrix products of the CPU backend: oneDNN's dnnl_sgemm.
//
// Matrices are row-major; a stride is the distance of two rows in floats. Thread safety: pure
// functions over their arguments.
#pragma once

#include <cstddef>

#include "absl/status/status.h"

namespace ringmaster {

struct ConstMatrix {
  const float* data = nullptr;
  ptrdiff_t stride = 0;
};

struct Matrix {
  float* data = nullptr;
  ptrdiff_t stride = 0;
};

// c is [m, n], and k the length that is summed over. With `accumulate`, c += instead of c =.
// INTERNAL if oneDNN refuses (never for valid sizes).
// c = a b, a: [m, k], b: [k, n]
absl::Status Multiply(int m, int n, int k, ConstMatrix a, ConstMatrix b, Matrix c);
// c = a^T b, a: [k, m], b: [k, n]
absl::Status MultiplyTransposedA(int m, int n, int k, ConstMatrix a, ConstMatrix b, bool accumulate,
                                 Matrix c);
// c = a b^T, a: [m, k], b: [n, k]
absl::Status MultiplyTransposedB(int m, int n, int k, ConstMatrix a, ConstMatrix b, Matrix c);

// How many threads the products started by the calling thread use from now on.
void SetMatrixThreads(int threads);

}  // namespace ringmaster
