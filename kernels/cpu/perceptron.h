// Forward and backward of the multilayer perceptron over one chunk of samples.
//
// All memory is allocated at construction, for chunks of up to max_rows() samples; larger slices
// are computed chunk by chunk, the gradients accumulating.
//
//   for each chunk:  input().Load() and labels() for each row; Forward(); Backward()
//   once:            FinishGradients()
//
// Thread safety: one thread at a time. The parameters and gradients given are borrowed for the
// call; both have ModelSpec's layout.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "common/model.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/input_layer.h"
#include "kernels/cpu/vector_kernels.h"

namespace ringmaster {

class Perceptron {
 public:
  // `sparse_input` asks for the sparse first layer; granted where its width allows it.
  Perceptron(const ModelSpec& model, bool sparse_input, int threads, const VectorKernels& kernels);

  int max_rows() const { return max_rows_; }
  bool sparse_input() const { return sparse_input_; }

  // Where the next chunk goes.
  InputLayer& input() { return *input_; }
  uint8_t* labels() { return labels_.data(); }  // [max_rows]
  const uint8_t* labels() const { return labels_.data(); }

  // Computes the loss, prediction and logit gradient of the first `rows` samples loaded; `rows` is
  // in [1, max_rows()].
  absl::Status Forward(const float* parameters, int rows);
  const float* losses() const { return losses_.data(); }              // [rows]
  const int32_t* predictions() const { return predictions_.data(); }  // [rows]

  // After Forward() on the same chunk: adds the chunk's gradient sums. The first chunk of a slice
  // (`first_chunk`) overwrites instead. The biases' go to a store of their own until
  // FinishGradients().
  absl::Status Backward(const float* parameters, bool first_chunk, float* gradients);
  // Writes the bias gradients.
  void FinishGradients(float* gradients) const;

 private:
  struct Layer {
    int inputs = 0;
    int outputs = 0;
    size_t kernel = 0;  // offset in the parameters
    size_t bias = 0;
    AlignedBuffer<float> output;  // [max_rows, stride]: activations; of the last layer, logits
    AlignedBuffer<float> delta;   // [max_rows, stride]: the gradient by them; unused in the last
    std::vector<double> bias_gradient;
    ptrdiff_t stride = 0;
  };

  void AddLayers(const ModelSpec& model);
  ConstMatrix DeltaOf(size_t layer) const;
  absl::Status Propagate(const float* parameters, size_t layer);

  const VectorKernels& kernels_;
  const int threads_;
  int max_rows_ = 0;
  bool sparse_input_ = false;
  int rows_ = 0;  // of the current chunk
  std::unique_ptr<InputLayer> input_;
  std::vector<Layer> layers_;
  std::vector<uint8_t> labels_;
  AlignedBuffer<float> losses_;
  std::vector<int32_t> predictions_;
};

}  // namespace ringmaster
