// Owners of CUDA and cuBLAS objects, and of memory on the device and of pinned memory on the host.
//
// Errors while destroying are ignored: there is nobody left to tell. Thread safety: as values.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/cuda/check.h"

namespace ringmaster {

// Owns one handle, ended by kDestroy; null when empty.
template <typename Handle, auto kDestroy>
class Owned {
 public:
  Owned() = default;
  explicit Owned(Handle handle) : handle_(handle) {}
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owned() {
    if (handle_ != nullptr) static_cast<void>(kDestroy(handle_));
  }

  Handle get() const { return handle_; }

 private:
  Handle handle_ = nullptr;
};

using CudaStream = Owned<cudaStream_t, cudaStreamDestroy>;
using CudaEvent = Owned<cudaEvent_t, cudaEventDestroy>;
using CublasHandle = Owned<cublasHandle_t, cublasDestroy>;

// An array in device memory, not initialised.
template <typename T>
class DeviceArray {
 public:
  DeviceArray() = default;
  // RESOURCE_EXHAUSTED: out of device memory. Allocates at least one element, so that data() is
  // never null.
  static absl::StatusOr<DeviceArray> Create(size_t count) {
    void* pointer = nullptr;
    RM_CUDA_RETURN_IF_ERROR(cudaMalloc(&pointer, (count > 0 ? count : 1) * sizeof(T)));
    return DeviceArray(static_cast<T*>(pointer), count);
  }

  T* data() const { return pointer_.get(); }
  size_t size() const { return size_; }
  size_t bytes() const { return size_ * sizeof(T); }

 private:
  DeviceArray(T* pointer, size_t size) : pointer_(pointer), size_(size) {}

  Owned<T*, cudaFree> pointer_;
  size_t size_ = 0;
};

// An array in pinned host memory that kernels reach too, zeroed.
template <typename T>
class MappedArray {
 public:
  MappedArray() = default;
  static absl::StatusOr<MappedArray> Create(size_t count) {
    MappedArray array;
    void* pointer = nullptr;
    RM_CUDA_RETURN_IF_ERROR(cudaHostAlloc(&pointer, count * sizeof(T), cudaHostAllocMapped));
    array.pointer_ = Owned<T*, cudaFreeHost>(static_cast<T*>(pointer));
    for (size_t i = 0; i < count; ++i) array.host()[i] = T{};
    void* device = nullptr;
    RM_CUDA_RETURN_IF_ERROR(cudaHostGetDevicePointer(&device, pointer, 0));
    array.device_ = static_cast<T*>(device);
    return array;
  }

  T* host() const { return pointer_.get(); }
  T* device() const { return device_; }  // the same memory, as kernels address it

 private:
  Owned<T*, cudaFreeHost> pointer_;
  T* device_ = nullptr;
};

}  // namespace ringmaster
