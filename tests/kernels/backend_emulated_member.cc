#include "kernels/cuda/cuda_backend.h"
#include "tests/kernels/backend_fixture.h"

namespace ringmaster {

absl::StatusOr<std::unique_ptr<Backend>> CreateEmulatedMember(const BackendOptions& options,
                                                              const Dataset& dataset) {
  return CreateCudaBackend(options, dataset);
}

}  // namespace ringmaster
