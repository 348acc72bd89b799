#include "kernels/cuda/perceptron.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace ringmaster {
namespace {

// Wide models get fewer rows, to bound the memory. The bound also keeps rows * columns of any layer
// far inside an int.
uint32_t ChunkRows(const ModelSpec& model, uint32_t most_rows) {
  constexpr size_t kMostFloats = size_t{1} << 28;
  const size_t widths = std::accumulate(model.layers.begin(), model.layers.end(), size_t{0});
  const size_t rows = std::max<size_t>(kMostFloats / widths, 1);
  return static_cast<uint32_t>(std::clamp<size_t>(most_rows, 1, rows));
}

}  // namespace

absl::StatusOr<CudaPerceptron> CudaPerceptron::Create(const ModelSpec& model, uint32_t most_rows,
                                                      cudaStream_t stream) {
  CudaPerceptron perceptron;
  perceptron.stream_ = stream;
  perceptron.max_rows_ = ChunkRows(model, most_rows);
  const size_t rows = perceptron.max_rows_;
  RM_ASSIGN_OR_RETURN(perceptron.matrix_, CudaMatrix::Create(stream));
  RM_ASSIGN_OR_RETURN(perceptron.x_, DeviceArray<float>::Create(rows * model.inputs()));
  RM_ASSIGN_OR_RETURN(perceptron.targets_, DeviceArray<uint8_t>::Create(rows));
  RM_ASSIGN_OR_RETURN(perceptron.predictions_, DeviceArray<uint8_t>::Create(rows));
  RM_RETURN_IF_ERROR(perceptron.AddLayers(model));
  return perceptron;
}

absl::Status CudaPerceptron::AddLayers(const ModelSpec& model) {
  const std::vector<ParameterSlice> slices = model.Slices();
  for (int i = 0; i < model.num_layers(); ++i) {
    Layer layer;
    layer.inputs = model.layers[i];
    layer.outputs = model.layers[i + 1];
    layer.kernel = slices[2 * i].offset;
    layer.bias = slices[2 * i + 1].offset;
    const size_t floats = size_t{max_rows_} * layer.outputs;
    RM_ASSIGN_OR_RETURN(layer.output, DeviceArray<float>::Create(floats));
    if (i + 1 < model.num_layers()) {
      RM_ASSIGN_OR_RETURN(layer.delta, DeviceArray<float>::Create(floats));
    }
    layers_.push_back(std::move(layer));
  }
  return absl::OkStatus();
}

const float* CudaPerceptron::InputOf(size_t layer) const {
  return layer == 0 ? x_.data() : layers_[layer - 1].output.data();
}

absl::Status CudaPerceptron::Forward(const float* parameters, uint32_t rows,
                                     cuda::DeviceRecord* record) {
  rows_ = static_cast<int>(rows);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    RM_RETURN_IF_ERROR(matrix_.Multiply(rows_, layer.outputs, layer.inputs, InputOf(i),
                                        parameters + layer.kernel, layer.output.data()));
    if (i + 1 == layers_.size()) break;
    RM_CUDA_RETURN_IF_ERROR(cuda::BiasRelu(parameters + layer.bias, rows_, layer.outputs,
                                           layer.output.data(), stream_));
  }
  const Layer& last = layers_.back();
  cuda::SoftmaxArguments softmax;
  softmax.logits = last.output.data();
  softmax.bias = parameters + last.bias;
  softmax.targets = targets_.data();
  softmax.predictions = predictions_.data();
  softmax.record = record;
  softmax.rows = rows_;
  softmax.classes = last.outputs;
  RM_CUDA_RETURN_IF_ERROR(cuda::SoftmaxCrossEntropy(softmax, stream_));
  return absl::OkStatus();
}

absl::Status CudaPerceptron::Backward(const float* parameters, bool first_chunk, float* gradients) {
  for (size_t i = layers_.size(); i-- > 0;) {
    const Layer& layer = layers_[i];
    const bool is_last = i + 1 == layers_.size();
    float* const delta = is_last ? layer.output.data() : layer.delta.data();
    RM_CUDA_RETURN_IF_ERROR(cuda::BiasGradient(is_last ? nullptr : layer.output.data(), rows_,
                                               layer.outputs, !first_chunk, delta,
                                               gradients + layer.bias, stream_));
    RM_RETURN_IF_ERROR(matrix_.MultiplyTransposedA(layer.inputs, layer.outputs, rows_, InputOf(i),
                                                   delta, !first_chunk, gradients + layer.kernel));
    if (i == 0) break;
    RM_RETURN_IF_ERROR(matrix_.MultiplyTransposedB(rows_, layer.inputs, layer.outputs, delta,
                                                   parameters + layer.kernel,
                                                   layers_[i - 1].delta.data()));
  }
  return absl::OkStatus();
}

}  // namespace ringmaster
