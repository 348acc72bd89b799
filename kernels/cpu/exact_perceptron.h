// The network in the arithmetic of kernels/exact.h: the same bits on every instruction set.
//
// All memory is allocated at construction. Thread safety and ownership: as Network. Gradients are
// in quanta. A chunk given to Backward() begins at the beginning of a micro-shard, and only the
// slice's last one ends inside one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cpu/exact_kernels.h"
#include "kernels/cpu/network.h"

namespace ringmaster {

class ExactPerceptron final : public Network {
 public:
  ExactPerceptron(const ModelSpec& model, int threads, const ExactKernels& kernels);

  std::string description() const override;
  Element element() const override { return Element::kInt64; }
  absl::Status Forward(const float* parameters, int rows) override;
  absl::Status Backward(const float* parameters, bool first_chunk, DeviceSpan gradients) override;
  bool FinishGradients(DeviceSpan gradients) override;
  void Update(const OptimizerSpec& optimizer, uint64_t samples, DeviceSpan gradients,
              TrainState* state) const override;

 private:
  // For all micro-shards of a chunk one after the other.
  struct Layer {
    int inputs = 0;
    int outputs = 0;
    size_t kernel = 0;  // offset in the parameters
    size_t bias = 0;
    ptrdiff_t stride = 0;             // outputs, padded
    AlignedBuffer<float> output;      // [max_rows / kMicroShard, stride, kMicroShard] in lanes:
                                      // activations; of the last layer logits, later delta
    AlignedBuffer<float> delta;       // likewise: the gradient by them; unused in the last
    AlignedBuffer<float> delta_rows;  // [max_rows, stride]: delta in rows
  };

  void LoadPixels(int row, const uint8_t* pixels) override;
  void AddLayers(const ModelSpec& model);
  ExactLayer View(const float* parameters, size_t layer) const;
  const float* PaddedWeights(const float* parameters);
  void MultiplyPixels(const float* weights);
  void ForwardShard(const float* parameters, int shard);
  void BackwardShard(const float* parameters, int shard);
  void TransposePixels();
  ExactGradient GradientFor(size_t layer) const;
  void AddGradient(const ExactGradient& gradient);
  // Calls body(first, count) for parts of [0, count), each on a thread of its own.
  template <typename Body>
  void ForParts(int count, const Body& body) const;
  int shards() const { return (rows_ + kShardRows - 1) / kShardRows; }

  static constexpr int kShardRows = static_cast<int>(kMicroShard);

  const ExactKernels& kernels_;
  const int threads_;
  const ptrdiff_t pixel_stride_;
  const ptrdiff_t transposed_stride_;
  AlignedBuffer<uint8_t> pixels_;      // [max_rows, inputs], both padded with zeros
  AlignedBuffer<uint8_t> transposed_;  // [inputs, max_rows], likewise
  float values_[256];                  // what a pixel stands for
  AlignedBuffer<float> padded_;        // the first layer's weights, where its width needs padding
  AlignedBuffer<float> first_;         // [max_rows, stride]: the first layer's products, in rows
  AlignedBuffer<float> ones_;          // [kMicroShard]: what a bias is multiplied by
  std::vector<Layer> layers_;
  int rows_ = 0;         // of the current chunk
  bool all_fit_ = true;  // the slice's gradients so far are representable
};

}  // namespace ringmaster
