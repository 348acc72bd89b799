#include "kernels/cpu/perceptron.h"

#include <algorithm>

#include "common/status_macros.h"

namespace ringmaster {
namespace {

// 128 rows of the default model are 0.6 MB with its parameters: they stay in the L2 cache. Wide
// models get fewer, to bound the memory.
int ChunkRows(const ModelSpec& model) {
  constexpr size_t kMostRows = 128;
  constexpr size_t kFewestRows = 16;
  constexpr size_t kFloatsPerActivation = size_t{1} << 22;
  const size_t widest = *std::max_element(model.layers.begin(), model.layers.end());
  return static_cast<int>(std::clamp(kFloatsPerActivation / widest, kFewestRows, kMostRows));
}

}  // namespace

Perceptron::Perceptron(const ModelSpec& model, bool sparse_input, int threads,
                       const VectorKernels& kernels)
    : kernels_(kernels),
      threads_(threads),
      max_rows_(ChunkRows(model)),
      sparse_input_(sparse_input && model.layers[1] % kSparseColumns == 0),
      labels_(max_rows_),
      losses_(max_rows_),
      predictions_(max_rows_) {
  AddLayers(model);
  const InputShape shape{model.inputs(), model.layers[1], max_rows_};
  input_ =
      sparse_input_ ? CreateSparseInput(shape, threads, kernels) : CreateDenseInput(shape, kernels);
}

void Perceptron::AddLayers(const ModelSpec& model) {
  const std::vector<ParameterSlice> slices = model.Slices();
  for (int i = 0; i < model.num_layers(); ++i) {
    Layer layer;
    layer.inputs = model.layers[i];
    layer.outputs = model.layers[i + 1];
    layer.kernel = slices[2 * i].offset;
    layer.bias = slices[2 * i + 1].offset;
    layer.stride = RoundUp(layer.outputs, kLogitPadding);
    layer.output = AlignedBuffer<float>(size_t{1} * max_rows_ * layer.stride);
    if (i + 1 < model.num_layers()) {
      layer.delta = AlignedBuffer<float>(size_t{1} * max_rows_ * layer.stride);
    }
    layer.bias_gradient.resize(layer.outputs);
    layers_.push_back(std::move(layer));
  }
}

absl::Status Perceptron::Forward(const float* parameters, int rows) {
  rows_ = rows;
  SetMatrixThreads(threads_);
  input_->Finish(rows);
  for (size_t i = 0; i < layers_.size(); ++i) {
    RM_RETURN_IF_ERROR(Propagate(parameters, i));
  }
  Layer& last = layers_.back();
  SoftmaxBatch batch;
  batch.logits = last.output.data();
  batch.bias = parameters + last.bias;
  batch.labels = labels_.data();
  batch.losses = losses_.data();
  batch.predictions = predictions_.data();
  batch.rows = rows;
  batch.classes = last.outputs;
  batch.stride = last.stride;
  kernels_.softmax_cross_entropy(batch);
  return absl::OkStatus();
}

absl::Status Perceptron::Propagate(const float* parameters, size_t index) {
  Layer& layer = layers_[index];
  const float* weights = parameters + layer.kernel;
  const Matrix out{layer.output.data(), layer.stride};
  if (index == 0) {
    RM_RETURN_IF_ERROR(input_->Forward(weights, out));
  } else {
    const Layer& before = layers_[index - 1];
    RM_RETURN_IF_ERROR(Multiply(rows_, layer.outputs, layer.inputs,
                                {before.output.data(), before.stride}, {weights, layer.outputs},
                                out));
  }
  if (index + 1 < layers_.size()) {
    kernels_.bias_relu(parameters + layer.bias, rows_, layer.outputs, layer.stride, out.data);
  }
  return absl::OkStatus();
}

ConstMatrix Perceptron::DeltaOf(size_t index) const {
  const Layer& layer = layers_[index];
  const bool is_last = index + 1 == layers_.size();
  return {is_last ? layer.output.data() : layer.delta.data(), layer.stride};
}

absl::Status Perceptron::Backward(const float* parameters, bool first_chunk, float* gradients) {
  for (size_t i = layers_.size(); i-- > 0;) {
    Layer& layer = layers_[i];
    const ConstMatrix delta = DeltaOf(i);
    if (first_chunk) std::fill(layer.bias_gradient.begin(), layer.bias_gradient.end(), 0.0);
    kernels_.add_column_sums(delta.data, rows_, layer.outputs, delta.stride,
                             layer.bias_gradient.data());
    float* const gradient = gradients + layer.kernel;
    if (i == 0) return input_->Gradient(delta, !first_chunk, gradient);
    Layer& before = layers_[i - 1];
    RM_RETURN_IF_ERROR(MultiplyTransposedA(layer.inputs, layer.outputs, rows_,
                                           {before.output.data(), before.stride}, delta,
                                           !first_chunk, {gradient, layer.outputs}));
    RM_RETURN_IF_ERROR(MultiplyTransposedB(rows_, layer.inputs, layer.outputs, delta,
                                           {parameters + layer.kernel, layer.outputs},
                                           {before.delta.data(), before.stride}));
    kernels_.relu_gradient(before.output.data(), rows_, layer.inputs, before.stride,
                           before.delta.data());
  }
  return absl::OkStatus();
}

void Perceptron::FinishGradients(float* gradients) const {
  for (const Layer& layer : layers_) {
    std::copy(layer.bias_gradient.begin(), layer.bias_gradient.end(), gradients + layer.bias);
  }
}

}  // namespace ringmaster
