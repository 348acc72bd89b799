#include "kernels/cpu/matrix.h"

#include <dnnl.h>
#include <omp.h>

#include "absl/strings/str_format.h"

namespace ringmaster {
namespace {

absl::Status Sgemm(char transpose_a, char transpose_b, int m, int n, int k, ConstMatrix a,
                   ConstMatrix b, bool accumulate, Matrix c) {
  const dnnl_status_t status =
      dnnl_sgemm(transpose_a, transpose_b, m, n, k, 1.0f, a.data, a.stride, b.data, b.stride,
                 accumulate ? 1.0f : 0.0f, c.data, c.stride);
  if (status == dnnl_success) return absl::OkStatus();
  return absl::InternalError(absl::StrFormat(
      "dnnl_sgemm(%c, %c, m=%d, n=%d, k=%d) failed with oneDNN status %d; this is a bug, please "
      "report it",
      transpose_a, transpose_b, m, n, k, static_cast<int>(status)));
}

}  // namespace

absl::Status Multiply(int m, int n, int k, ConstMatrix a, ConstMatrix b, Matrix c) {
  return Sgemm('N', 'N', m, n, k, a, b, false, c);
}

absl::Status MultiplyTransposedA(int m, int n, int k, ConstMatrix a, ConstMatrix b, bool accumulate,
                                 Matrix c) {
  return Sgemm('T', 'N', m, n, k, a, b, accumulate, c);
}

absl::Status MultiplyTransposedB(int m, int n, int k, ConstMatrix a, ConstMatrix b, Matrix c) {
  return Sgemm('N', 'T', m, n, k, a, b, false, c);
}

void SetMatrixThreads(int threads) { omp_set_num_threads(threads); }

}  // namespace ringmaster
