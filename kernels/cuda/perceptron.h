// The network in fp32: cuBLAS for the dense products, own kernels for the rest.
//
// Thread safety and ownership: as CudaNetwork.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model.h"
#include "kernels/cuda/matrix.h"
#include "kernels/cuda/network.h"

namespace ringmaster {

class CudaPerceptron final : public CudaNetwork {
 public:
  // `most_rows`: the largest chunk that is wanted. Codes as CudaStatus.
  static absl::StatusOr<std::unique_ptr<CudaPerceptron>> Create(const ModelSpec& model,
                                                                uint32_t most_rows,
                                                                cudaStream_t stream);

  absl::Status Forward(const float* parameters, uint32_t rows, cuda::DeviceRecord* record) override;
  absl::Status Backward(const float* parameters, bool first_chunk, DeviceSpan gradients,
                        cuda::DeviceRecord* record) override;

 private:
  CudaMatrix matrix_;
};

}  // namespace ringmaster
