#include "kernels/cuda/exact_perceptron.h"

#include "common/sampling_plan.h"
#include "kernels/cuda/exact_kernels.h"

namespace ringmaster {

absl::StatusOr<std::unique_ptr<CudaExactPerceptron>> CudaExactPerceptron::Create(
    const ModelSpec& model, uint32_t most_rows, cudaStream_t stream) {
  auto perceptron = std::make_unique<CudaExactPerceptron>();
  RM_RETURN_IF_ERROR(perceptron->Allocate(model, most_rows, kMicroShard, stream));
  return perceptron;
}

absl::Status CudaExactPerceptron::Forward(const float* parameters, uint32_t rows,
                                          cuda::DeviceRecord* record) {
  rows_ = static_cast<int>(rows);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    const cuda::ExactForwardArguments forward = {
        .x = InputOf(i),
        .weights = parameters + layer.kernel,
        .bias = parameters + layer.bias,
        .rows = rows_,
        .inputs = layer.inputs,
        .outputs = layer.outputs,
        .skip_zeros = i == 0,
        .relu = !is_last(i),
        .out = layer.output.data(),
    };
    RM_CUDA_RETURN_IF_ERROR(cuda::ExactForward(forward, stream_));
  }
  RM_CUDA_RETURN_IF_ERROR(cuda::ExactSoftmax(SoftmaxOf(parameters, record), stream_));
  return absl::OkStatus();
}

absl::Status CudaExactPerceptron::Backward(const float* parameters, bool first_chunk,
                                           DeviceSpan gradients, cuda::DeviceRecord* record) {
  for (size_t i = layers_.size(); i-- > 0;) {
    const Layer& layer = layers_[i];
    const cuda::ExactGradientArguments gradient = {
        .x = InputOf(i),
        .delta = DeltaOf(i),
        .rows = rows_,
        .inputs = layer.inputs,
        .outputs = layer.outputs,
        .accumulate = !first_chunk,
        .gradient = gradients.integers() + layer.kernel,
        .bias_gradient = gradients.integers() + layer.bias,
        .record = record,
    };
    RM_CUDA_RETURN_IF_ERROR(cuda::ExactGradient(gradient, stream_));
    if (i == 0) break;
    const cuda::ExactDeltaArguments delta = {
        .activation = InputOf(i),
        .weights = parameters + layer.kernel,
        .delta = DeltaOf(i),
        .rows = rows_,
        .inputs = layer.inputs,
        .outputs = layer.outputs,
        .delta_in = layers_[i - 1].delta.data(),
    };
    RM_CUDA_RETURN_IF_ERROR(cuda::ExactDelta(delta, stream_));
  }
  return absl::OkStatus();
}

}  // namespace ringmaster
