// What kernels see: the language's extensions, and launches. See cuda_runtime_api.h.
//
// The threads of a block run one at a time, each as far as its next barrier or shuffle; blocks run
// one after the other. So __shared__ memory is a static of the stream's thread, and an atomic
// operation is a plain one.
#pragma once

#include <cmath>
#include <functional>

#include "tests/kernels/cuda_emulation/cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  unsigned x, y, z;
};

// What the thread that runs is; set at each switch.
extern thread_local uint3 threadIdx;
extern thread_local uint3 blockIdx;
extern thread_local dim3 blockDim;
extern thread_local dim3 gridDim;

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  cudaStream_t stream;
};

namespace emulation {

// Waits for the other threads of the block, or of the warp.
void SyncBlock();
void SyncWarp();
// A place of 8 bytes for each lane of the running thread's warp.
void* LaneSlot(int lane);
int Lane();

void Enqueue(cudaStream_t stream, std::function<void()> work);
void RunGrid(dim3 grid, dim3 block, const std::function<void()>& thread);

}  // namespace emulation

inline void __syncthreads() { emulation::SyncBlock(); }

template <typename T>
T __shfl_sync(unsigned /*mask*/, T value, int from) {
  static_assert(sizeof(T) <= 8);
  *static_cast<T*>(emulation::LaneSlot(emulation::Lane())) = value;
  emulation::SyncWarp();
  const T taken = *static_cast<T*>(emulation::LaneSlot(from));
  emulation::SyncWarp();
  return taken;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int offset) {
  return __shfl_sync(mask, value, emulation::Lane() ^ offset);
}

template <typename T>
T atomicAdd(T* where, T value) {
  const T before = *where;
  *where += value;
  return before;
}

using std::isfinite;

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const dim3 grid = config->gridDim;
  const dim3 block = config->blockDim;
  emulation::Enqueue(config->stream,
                     [=] { emulation::RunGrid(grid, block, [&] { kernel(arguments...); }); });
  return cudaSuccess;
}
