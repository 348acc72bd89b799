// The network in fp32: oneDNN for the dense products, VectorKernels for the rest.
//
// All memory is allocated at construction. Thread safety and ownership: as Network.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/model.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/input_layer.h"
#include "kernels/cpu/network.h"
#include "kernels/cpu/vector_kernels.h"

namespace ringmaster {

class Perceptron final : public Network {
 public:
  // `sparse_input` asks for the sparse first layer; granted where its width allows it.
  Perceptron(const ModelSpec& model, bool sparse_input, int threads, const VectorKernels& kernels);

  std::string description() const override;
  Element element() const override { return Element::kFloat32; }
  absl::Status Forward(const float* parameters, int rows) override;
  // The biases' gradients go to a store of their own until FinishGradients().
  absl::Status Backward(const float* parameters, bool first_chunk, DeviceSpan gradients) override;
  bool FinishGradients(DeviceSpan gradients) override;
  void Update(const OptimizerSpec& optimizer, uint64_t samples, DeviceSpan gradients,
              TrainState* state) const override;

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

  void LoadPixels(int row, const uint8_t* pixels) override { input_->Load(row, pixels); }
  void AddLayers(const ModelSpec& model);
  ConstMatrix DeltaOf(size_t layer) const;
  absl::Status Propagate(const float* parameters, size_t layer);
  void UpdateAdam(const OptimizerSpec& optimizer, float scale, const float* gradient,
                  TrainState* state) const;

  const VectorKernels& kernels_;
  const int threads_;
  bool sparse_input_ = false;
  int rows_ = 0;  // of the current chunk
  std::unique_ptr<InputLayer> input_;
  std::vector<Layer> layers_;
};

}  // namespace ringmaster
