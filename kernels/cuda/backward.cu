// The ReLU's and the biases' gradients.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace ringmaster::cuda {
namespace {

// A block does 8 columns (one memory sector of each row) with 64 threads to a column.
constexpr int kColumns = 8;
constexpr int kRows = 64;

__global__ void BiasGradientKernel(const float* activation, int rows, int columns, bool accumulate,
                                   float* delta, float* bias_gradient) {
  __shared__ double partial[kRows][kColumns];
  const int x = threadIdx.x;
  const int y = threadIdx.y;
  const int column = blockIdx.x * kColumns + x;
  double sum = 0;
  for (int row = y; row < rows && column < columns; row += kRows) {
    const int i = row * columns + column;
    const bool is_cut = activation != nullptr && activation[i] <= 0;
    if (is_cut) {
      delta[i] = 0;
    } else {
      sum += delta[i];
    }
  }
  partial[y][x] = sum;
  for (int half = kRows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (y < half) partial[y][x] += partial[y + half][x];
  }
  if (y != 0 || column >= columns) return;
  const float total = static_cast<float>(partial[0][x]);
  bias_gradient[column] = accumulate ? bias_gradient[column] + total : total;
}

}  // namespace

cudaError_t BiasGradient(const float* activation, int rows, int columns, bool accumulate,
                         float* delta, float* bias_gradient, cudaStream_t stream) {
  return Launch(BiasGradientKernel, BlocksFor(columns, kColumns), dim3(kColumns, kRows), stream,
                activation, rows, columns, accumulate, delta, bias_gradient);
}

}  // namespace ringmaster::cuda
