#include "kernels/cpu/exact_perceptron.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "absl/strings/str_format.h"
#include "kernels/cpu/vector_kernels.h"

namespace ringmaster {

ExactPerceptron::ExactPerceptron(const ModelSpec& model, int threads, const ExactKernels& kernels)
    : Network(ChunkRows(model)),
      kernels_(kernels),
      threads_(threads),
      pixel_stride_(RoundUp(model.inputs(), kPixelPadding)),
      transposed_stride_(RoundUp(max_rows_, kPixelPadding)),
      pixels_(transposed_stride_ * pixel_stride_),
      transposed_(pixel_stride_ * transposed_stride_),
      ones_(kMicroShard) {
  for (int i = 0; i < 256; ++i) values_[i] = static_cast<float>(i) * exact::kPixelScale;
  std::fill_n(ones_.data(), kMicroShard, 1.0f);
  AddLayers(model);
  const Layer& first = layers_.front();
  first_ = AlignedBuffer<float>(max_rows_ * first.stride);
  if (first.stride != first.outputs) padded_ = AlignedBuffer<float>(first.inputs * first.stride);
}

std::string ExactPerceptron::description() const {
  return absl::StrFormat("%s, exact arithmetic, %d thread%s", kernels_.name, threads_,
                         threads_ == 1 ? "" : "s");
}

void ExactPerceptron::AddLayers(const ModelSpec& model) {
  const std::vector<ParameterSlice> slices = model.Slices();
  for (int i = 0; i < model.num_layers(); ++i) {
    Layer layer;
    layer.inputs = model.layers[i];
    layer.outputs = model.layers[i + 1];
    layer.kernel = slices[2 * i].offset;
    layer.bias = slices[2 * i + 1].offset;
    layer.stride = RoundUp(layer.outputs, kExactPadding);
    const size_t size = size_t{1} * max_rows_ * layer.stride;
    layer.output = AlignedBuffer<float>(size);
    if (i + 1 < model.num_layers()) layer.delta = AlignedBuffer<float>(size);
    layer.delta_rows = AlignedBuffer<float>(size);
    layers_.push_back(std::move(layer));
  }
}

template <typename Body>
void ExactPerceptron::ForParts(int count, const Body& body) const {
  if (threads_ == 1) return body(0, count);
  const int share = (count + threads_ - 1) / threads_;
#pragma omp parallel for num_threads(threads_) schedule(static, 1)
  for (int first = 0; first < count; first += share) body(first, std::min(share, count - first));
}

void ExactPerceptron::LoadPixels(int row, const uint8_t* pixels) {
  std::memcpy(&pixels_[row * pixel_stride_], pixels, layers_.front().inputs);
}

ExactLayer ExactPerceptron::View(const float* parameters, size_t index) const {
  const Layer& layer = layers_[index];
  return {parameters + layer.kernel, parameters + layer.bias, layer.inputs, layer.outputs,
          /*relu=*/index + 1 < layers_.size()};
}

const float* ExactPerceptron::PaddedWeights(const float* parameters) {
  const Layer& layer = layers_.front();
  const float* const weights = parameters + layer.kernel;
  if (padded_.size() == 0) return weights;
  for (int i = 0; i < layer.inputs; ++i) {
    std::copy_n(weights + size_t{1} * i * layer.outputs, layer.outputs, &padded_[i * layer.stride]);
  }
  return padded_.data();
}

void ExactPerceptron::MultiplyPixels(const float* weights) {
  const Layer& layer = layers_.front();
  ForParts(rows_, [&](int first, int count) {
    PixelProduct product;
    product.pixels = &pixels_[first * pixel_stride_];
    product.pixel_stride = pixel_stride_;
    product.values = values_;
    product.b = weights;
    product.b_stride = layer.stride;
    product.c = &first_[first * layer.stride];
    product.c_stride = layer.stride;
    product.rows = count;
    product.depth = layer.inputs;
    product.columns = static_cast<int>(layer.stride);
    kernels_.multiply_pixels(product);
  });
}

absl::Status ExactPerceptron::Forward(const float* parameters, int rows) {
  rows_ = rows;
  MultiplyPixels(PaddedWeights(parameters));
  ForParts(shards(), [&](int first, int count) {
    for (int shard = first; shard < first + count; ++shard) ForwardShard(parameters, shard);
  });
  return absl::OkStatus();
}

void ExactPerceptron::ForwardShard(const float* parameters, int shard) {
  const ptrdiff_t row = ptrdiff_t{shard} * kShardRows;
  const auto output = [&](size_t i) { return layers_[i].output.data() + row * layers_[i].stride; };
  const ptrdiff_t stride = layers_.front().stride;
  kernels_.activate(View(parameters, 0), &first_[row * stride], stride, output(0));
  for (size_t i = 1; i < layers_.size(); ++i) {
    kernels_.forward(View(parameters, i), output(i - 1), output(i));
  }
  const size_t last = layers_.size() - 1;
  kernels_.softmax(layers_[last].outputs, &labels_[row], output(last), &losses_[row],
                   &predictions_[row]);
}

absl::Status ExactPerceptron::Backward(const float* parameters, bool first_chunk,
                                       DeviceSpan gradients) {
  if (first_chunk) all_fit_ = true;
  ForParts(shards(), [&](int first, int count) {
    for (int shard = first; shard < first + count; ++shard) BackwardShard(parameters, shard);
  });
  TransposePixels();
  for (size_t i = 0; i < layers_.size(); ++i) {
    ExactGradient gradient = GradientFor(i);
    gradient.accumulate = !first_chunk;
    gradient.gradient = gradients.integers() + layers_[i].kernel;
    AddGradient(gradient);
    gradient.pixels = nullptr;
    gradient.factors = ones_.data();
    gradient.factor_stride = 0;
    gradient.inputs = 1;
    gradient.gradient = gradients.integers() + layers_[i].bias;
    AddGradient(gradient);
  }
  return absl::OkStatus();
}

void ExactPerceptron::BackwardShard(const float* parameters, int shard) {
  const ptrdiff_t row = ptrdiff_t{shard} * kShardRows;
  for (size_t i = layers_.size(); i-- > 0;) {
    Layer& layer = layers_[i];
    const bool is_last = i + 1 == layers_.size();
    const float* const delta = (is_last ? layer.output : layer.delta).data() + row * layer.stride;
    kernels_.to_rows(delta, static_cast<int>(layer.stride), layer.stride,
                     &layer.delta_rows[row * layer.stride]);
    if (i == 0) return;
    Layer& before = layers_[i - 1];
    kernels_.backward(View(parameters, i), &before.output[row * before.stride], delta,
                      &before.delta[row * before.stride]);
  }
}

// Rows of an earlier, larger chunk must not show in the last micro-shard.
void ExactPerceptron::TransposePixels() {
  const int inputs = layers_.front().inputs;
  std::fill(&pixels_[0] + rows_ * pixel_stride_,
            &pixels_[0] + shards() * kShardRows * pixel_stride_, uint8_t{0});
  kernels_.transpose_bytes(pixels_.data(), pixel_stride_, shards() * kShardRows, inputs,
                           transposed_.data(), transposed_stride_);
}

ExactGradient ExactPerceptron::GradientFor(size_t index) const {
  const Layer& layer = layers_[index];
  ExactGradient gradient;
  if (index == 0) {
    gradient.pixels = transposed_.data();
    gradient.pixel_stride = transposed_stride_;
    gradient.values = values_;
  } else {
    gradient.factors = layers_[index - 1].output.data();
    gradient.factor_stride = layers_[index - 1].stride * kShardRows;
  }
  gradient.delta = layer.delta_rows.data();
  gradient.delta_stride = layer.stride;
  gradient.rows = rows_;
  gradient.inputs = layer.inputs;
  gradient.outputs = layer.outputs;
  return gradient;
}

void ExactPerceptron::AddGradient(const ExactGradient& gradient) {
  std::atomic<bool> all_fit = true;
  ForParts(gradient.inputs, [&](int first, int count) {
    ExactGradient part = gradient;
    part.inputs = count;
    part.gradient += ptrdiff_t{first} * part.outputs;
    if (part.pixels != nullptr) {
      part.pixels += first * part.pixel_stride;
    } else {
      part.factors += ptrdiff_t{first} * kShardRows;
    }
    if (!kernels_.gradient(part)) all_fit = false;
  });
  all_fit_ = all_fit_ && all_fit;
}

bool ExactPerceptron::FinishGradients(DeviceSpan /*gradients*/) { return all_fit_; }

void ExactPerceptron::Update(const OptimizerSpec& spec, uint64_t samples, DeviceSpan gradients,
                             TrainState* state) const {
  ExactUpdate update;
  update.count = state->parameters.size();
  update.gradient = gradients.integers();
  update.mean_scale = exact::MeanScale(samples);
  update.parameters = state->parameters.data();
  update.first_moment = state->first_moment.data();
  update.second_moment = state->second_moment.data();
  ++state->step;
  if (spec.kind == OptimizerSpec::Kind::kSgd) {
    return kernels_.sgd(update, spec.learning_rate);
  }
  kernels_.adam(update, exact::MakeAdamFactors(spec.learning_rate, spec.beta1, spec.beta2,
                                               spec.epsilon, state->step));
}

}  // namespace ringmaster
