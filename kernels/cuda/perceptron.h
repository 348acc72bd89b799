// Forward and backward of the multilayer perceptron over one chunk of samples, on the device.
//
// All memory is allocated at creation, for chunks of up to max_rows() samples; larger slices are
// computed chunk by chunk, the gradients accumulating. Everything is enqueued on one stream.
//
//   for each chunk:  gather into x() and targets(); Forward(); Backward()
//
// Thread safety: one thread at a time. The parameters and gradients given are borrowed until the
// stream has passed; both have ModelSpec's layout.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model.h"
#include "kernels/cuda/handles.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/matrix.h"

namespace ringmaster {

class CudaPerceptron {
 public:
  // `most_rows`: the largest chunk that is wanted. Codes as CudaStatus.
  static absl::StatusOr<CudaPerceptron> Create(const ModelSpec& model, uint32_t most_rows,
                                               cudaStream_t stream);

  uint32_t max_rows() const { return max_rows_; }
  float* x() { return x_.data(); }                              // [max_rows, inputs]
  uint8_t* targets() { return targets_.data(); }                // [max_rows]
  const uint8_t* predictions() { return predictions_.data(); }  // [max_rows], after Forward()

  // Computes loss, prediction and logit gradient of the first `rows` samples gathered, and counts
  // them in `record`. `rows` is in [1, max_rows()].
  absl::Status Forward(const float* parameters, uint32_t rows, cuda::DeviceRecord* record);

  // After Forward() on the same chunk: adds the chunk's gradient sums. The first chunk of a slice
  // (`first_chunk`) overwrites instead.
  absl::Status Backward(const float* parameters, bool first_chunk, float* gradients);

 private:
  struct Layer {
    int inputs = 0;
    int outputs = 0;
    size_t kernel = 0;  // offset in the parameters
    size_t bias = 0;
    DeviceArray<float>
        output;                // [max_rows, outputs]: activations; of the last, logits, later delta
    DeviceArray<float> delta;  // [max_rows, outputs]; unused in the last layer
  };

  absl::Status AddLayers(const ModelSpec& model);
  const float* InputOf(size_t layer) const;

  cudaStream_t stream_ = nullptr;
  uint32_t max_rows_ = 0;
  int rows_ = 0;  // of the current chunk
  CudaMatrix matrix_;
  DeviceArray<float> x_;
  DeviceArray<uint8_t> targets_;
  DeviceArray<uint8_t> predictions_;
  std::vector<Layer> layers_;
};

}  // namespace ringmaster
