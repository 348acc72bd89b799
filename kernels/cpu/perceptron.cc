#include "kernels/cpu/perceptron.h"

#include <dnnl.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace ringmaster {
int ChunkRows(const ModelSpec& model) {
  constexpr size_t kMostRows = 128;
  constexpr size_t kFewestRows = 16;
  constexpr size_t kFloatsPerActivation = size_t{1} << 22;
  const size_t widest = *std::max_element(model.layers.begin(), model.layers.end());
  const size_t rows = std::clamp(kFloatsPerActivation / widest, kFewestRows, kMostRows);
  return static_cast<int>(rows / kFewestRows * kFewestRows);
}

Perceptron::Perceptron(const ModelSpec& model, bool sparse_input, int threads,
                       const VectorKernels& kernels)
    : Network(ChunkRows(model)),
      kernels_(kernels),
      threads_(threads),
      sparse_input_(sparse_input && model.layers[1] % kSparseColumns == 0) {
  AddLayers(model);
  const InputShape shape{model.inputs(), model.layers[1], max_rows_};
  input_ =
      sparse_input_ ? CreateSparseInput(shape, threads, kernels) : CreateDenseInput(shape, kernels);
}

std::string Perceptron::description() const {
  const dnnl_version_t& dnnl = *dnnl_version();
  return absl::StrFormat("%s, oneDNN %d.%d.%d, %d thread%s, %s first layer", kernels_.name,
                         dnnl.major, dnnl.minor, dnnl.patch, threads_, threads_ == 1 ? "" : "s",
                         sparse_input_ ? "sparse" : "dense");
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

absl::Status Perceptron::Backward(const float* parameters, bool first_chunk, DeviceSpan gradients) {
  for (size_t i = layers_.size(); i-- > 0;) {
    Layer& layer = layers_[i];
    const ConstMatrix delta = DeltaOf(i);
    if (first_chunk) std::fill(layer.bias_gradient.begin(), layer.bias_gradient.end(), 0.0);
    kernels_.add_column_sums(delta.data, rows_, layer.outputs, delta.stride,
                             layer.bias_gradient.data());
    float* const gradient = gradients.floats() + layer.kernel;
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

bool Perceptron::FinishGradients(DeviceSpan gradients) {
  for (const Layer& layer : layers_) {
    std::copy(layer.bias_gradient.begin(), layer.bias_gradient.end(),
              gradients.floats() + layer.bias);
  }
  return true;
}

void Perceptron::Update(const OptimizerSpec& optimizer, uint64_t samples, DeviceSpan gradients,
                        TrainState* state) const {
  const float scale = samples == 0 ? 0.0f : static_cast<float>(1.0 / static_cast<double>(samples));
  if (optimizer.kind == OptimizerSpec::Kind::kAdam) {
    UpdateAdam(optimizer, scale, gradients.floats(), state);
  } else {
    kernels_.sgd(gradients.floats(), gradients.count, optimizer.learning_rate * scale,
                 state->parameters.data());
  }
  ++state->step;
}

void Perceptron::UpdateAdam(const OptimizerSpec& spec, float scale, const float* gradient,
                            TrainState* state) const {
  const double t = static_cast<double>(state->step + 1);
  const double alpha = spec.learning_rate * std::sqrt(1.0 - std::pow(double{spec.beta2}, t)) /
                       (1.0 - std::pow(double{spec.beta1}, t));
  AdamUpdate update;
  update.count = state->parameters.size();
  update.gradient = gradient;
  update.parameters = state->parameters.data();
  update.first_moment = state->first_moment.data();
  update.second_moment = state->second_moment.data();
  update.scale = scale;
  update.one_minus_beta1 = static_cast<float>(1.0 - double{spec.beta1});
  update.one_minus_beta2 = static_cast<float>(1.0 - double{spec.beta2});
  update.alpha = static_cast<float>(alpha);
  update.epsilon = spec.epsilon;
  kernels_.adam(update);
}

}  // namespace ringmaster
