#include "kernels/cuda/network.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace ringmaster {
namespace {

// Wide models get fewer rows, to bound the memory. The bound also keeps rows * columns of any layer
// far inside an int.
uint32_t ChunkRows(const ModelSpec& model, uint32_t most_rows, uint32_t unit) {
  constexpr size_t kMostFloats = size_t{1} << 28;
  const size_t widths = std::accumulate(model.layers.begin(), model.layers.end(), size_t{0});
  const size_t rows = std::clamp<size_t>(most_rows, 1, std::max<size_t>(kMostFloats / widths, 1));
  return static_cast<uint32_t>(std::max<size_t>(rows / unit, 1) * unit);
}

}  // namespace

absl::Status CudaNetwork::Allocate(const ModelSpec& model, uint32_t rows, uint32_t unit,
                                   cudaStream_t stream) {
  stream_ = stream;
  max_rows_ = ChunkRows(model, rows, unit);
  RM_ASSIGN_OR_RETURN(x_, DeviceArray<float>::Create(size_t{max_rows_} * model.inputs()));
  RM_ASSIGN_OR_RETURN(targets_, DeviceArray<uint8_t>::Create(max_rows_));
  RM_ASSIGN_OR_RETURN(predictions_, DeviceArray<uint8_t>::Create(max_rows_));
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

cuda::SoftmaxArguments CudaNetwork::SoftmaxOf(const float* parameters,
                                              cuda::DeviceRecord* record) const {
  const Layer& last = layers_.back();
  cuda::SoftmaxArguments softmax;
  softmax.logits = last.output.data();
  softmax.bias = parameters + last.bias;
  softmax.targets = targets_.data();
  softmax.predictions = predictions_.data();
  softmax.record = record;
  softmax.rows = rows_;
  softmax.classes = last.outputs;
  return softmax;
}

}  // namespace ringmaster
