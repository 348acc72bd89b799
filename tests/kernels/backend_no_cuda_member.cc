#include "tests/kernels/backend_fixture.h"

namespace ringmaster {

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const BackendOptions& /*options*/,
                                                           const Dataset& /*dataset*/) {
  return absl::UnavailableError("the tests were built without the loader of libringmaster_cuda.so");
}

}  // namespace ringmaster
