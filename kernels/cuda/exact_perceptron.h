// The network in the arithmetic of kernels/exact.h: the same bits as on any CPU.
//
// Gradients are in quanta. A chunk begins at the beginning of a micro-shard, and only the slice's
// last one ends inside one. Thread safety and ownership: as CudaNetwork.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model.h"
#include "kernels/cuda/network.h"

namespace ringmaster {

class CudaExactPerceptron final : public CudaNetwork {
 public:
  // `most_rows`: the largest chunk that is wanted. Codes as CudaStatus.
  static absl::StatusOr<std::unique_ptr<CudaExactPerceptron>> Create(const ModelSpec& model,
                                                                     uint32_t most_rows,
                                                                     cudaStream_t stream);

  absl::Status Forward(const float* parameters, uint32_t rows, cuda::DeviceRecord* record) override;
  absl::Status Backward(const float* parameters, bool first_chunk, DeviceSpan gradients,
                        cuda::DeviceRecord* record) override;
};

}  // namespace ringmaster
