#include "kernels/cuda/perceptron.h"

namespace ringmaster {

absl::StatusOr<std::unique_ptr<CudaPerceptron>> CudaPerceptron::Create(const ModelSpec& model,
                                                                       uint32_t most_rows,
                                                                       cudaStream_t stream) {
  auto perceptron = std::make_unique<CudaPerceptron>();
  RM_ASSIGN_OR_RETURN(perceptron->matrix_, CudaMatrix::Create(stream));
  RM_RETURN_IF_ERROR(perceptron->Allocate(model, most_rows, /*unit=*/1, stream));
  return perceptron;
}

absl::Status CudaPerceptron::Forward(const float* parameters, uint32_t rows,
                                     cuda::DeviceRecord* record) {
  rows_ = static_cast<int>(rows);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    RM_RETURN_IF_ERROR(matrix_.Multiply(rows_, layer.outputs, layer.inputs, InputOf(i),
                                        parameters + layer.kernel, layer.output.data()));
    if (is_last(i)) break;
    RM_CUDA_RETURN_IF_ERROR(cuda::BiasRelu(parameters + layer.bias, rows_, layer.outputs,
                                           layer.output.data(), stream_));
  }
  RM_CUDA_RETURN_IF_ERROR(cuda::SoftmaxCrossEntropy(SoftmaxOf(parameters, record), stream_));
  return absl::OkStatus();
}

absl::Status CudaPerceptron::Backward(const float* parameters, bool first_chunk,
                                      DeviceSpan gradients, cuda::DeviceRecord* /*record*/) {
  for (size_t i = layers_.size(); i-- > 0;) {
    const Layer& layer = layers_[i];
    float* const delta = DeltaOf(i);
    RM_CUDA_RETURN_IF_ERROR(cuda::BiasGradient(is_last(i) ? nullptr : layer.output.data(), rows_,
                                               layer.outputs, !first_chunk, delta,
                                               gradients.floats() + layer.bias, stream_));
    RM_RETURN_IF_ERROR(matrix_.MultiplyTransposedA(layer.inputs, layer.outputs, rows_, InputOf(i),
                                                   delta, !first_chunk,
                                                   gradients.floats() + layer.kernel));
    if (i == 0) break;
    RM_RETURN_IF_ERROR(matrix_.MultiplyTransposedB(rows_, layer.inputs, layer.outputs, delta,
                                                   parameters + layer.kernel,
                                                   layers_[i - 1].delta.data()));
  }
  return absl::OkStatus();
}

}  // namespace ringmaster
