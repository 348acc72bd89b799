// The network of the CUDA backend: forward and backward of the multilayer perceptron over one chunk
// of samples, on the device. CudaPerceptron computes with cuBLAS, CudaExactPerceptron with
// kernels/exact.h.
//
// All memory is allocated at creation, for chunks of up to max_rows() samples; larger slices are
// computed chunk by chunk, the gradients accumulating. Everything is enqueued on one stream.
//
//   for each chunk:  gather into x() and targets(); Forward(); Backward()
//
// Thread safety: one thread at a time. The parameters, gradients and record given are borrowed
// until the stream has passed; parameters and gradients have ModelSpec's layout.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model.h"
#include "kernels/cuda/handles.h"
#include "kernels/cuda/kernels.h"
#include "kernels/device_span.h"

namespace ringmaster {

class CudaNetwork {
 public:
  virtual ~CudaNetwork() = default;

  uint32_t max_rows() const { return max_rows_; }
  float* x() { return x_.data(); }                              // [max_rows, inputs]
  uint8_t* targets() { return targets_.data(); }                // [max_rows]
  const uint8_t* predictions() { return predictions_.data(); }  // [max_rows], after Forward()

  // Computes loss, prediction and logit gradient of the first `rows` samples gathered, and counts
  // them in `record`. `rows` is in [1, max_rows()].
  virtual absl::Status Forward(const float* parameters, uint32_t rows,
                               cuda::DeviceRecord* record) = 0;
  // After Forward() on the same chunk: adds the chunk's gradient sums. The first chunk of a slice
  // (`first_chunk`) overwrites instead. `record` learns of gradients that cannot be represented.
  virtual absl::Status Backward(const float* parameters, bool first_chunk, DeviceSpan gradients,
                                cuda::DeviceRecord* record) = 0;

 protected:
  struct Layer {
    int inputs = 0;
    int outputs = 0;
    size_t kernel = 0;  // offset in the parameters
    size_t bias = 0;
    DeviceArray<float>
        output;                // [max_rows, outputs]: activations; of the last, logits, later delta
    DeviceArray<float> delta;  // [max_rows, outputs]; unused in the last layer
  };

  // `rows`: the largest chunk that is wanted, of which max_rows() is made: fewer for wide models,
  // and a multiple of `unit`. Codes as CudaStatus.
  absl::Status Allocate(const ModelSpec& model, uint32_t rows, uint32_t unit, cudaStream_t stream);

  bool is_last(size_t layer) const { return layer + 1 == layers_.size(); }
  const float* InputOf(size_t layer) const {
    return layer == 0 ? x_.data() : layers_[layer - 1].output.data();
  }
  float* DeltaOf(size_t layer) const {
    return (is_last(layer) ? layers_[layer].output : layers_[layer].delta).data();
  }
  cuda::SoftmaxArguments SoftmaxOf(const float* parameters, cuda::DeviceRecord* record) const;

  cudaStream_t stream_ = nullptr;
  uint32_t max_rows_ = 0;
  int rows_ = 0;  // of the current chunk
  DeviceArray<float> x_;
  DeviceArray<uint8_t> targets_;
  DeviceArray<uint8_t> predictions_;
  std::vector<Layer> layers_;
};

}  // namespace ringmaster
