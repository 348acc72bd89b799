// Launching a kernel over a grid. Thread safety: as CUDA launches.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace ringmaster::cuda {

// Threads of a block where nothing else decides.
inline constexpr int kBlockThreads = 256;

// Blocks of `size` that cover `count` elements; at least one.
inline unsigned BlocksFor(size_t count, int size) {
  const size_t blocks = (count + size - 1) / size;
  return static_cast<unsigned>(blocks > 0 ? blocks : 1);
}

template <typename... Parameters, typename... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, cudaStream_t stream,
                   Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace ringmaster::cuda
