#include "common/status_macros.h"
#include "tests/kernels/backend_fixture.h"
#include "worker/cuda_loader.h"

namespace ringmaster {
namespace {

// Opened once: a module stays open anyway, and a failure is the same the second time.
const absl::StatusOr<const CudaModule*>& Module() {
  static const auto* const module =
      new absl::StatusOr<const CudaModule*>([]() -> absl::StatusOr<const CudaModule*> {
        RM_ASSIGN_OR_RETURN(const CudaModule* loaded, LoadCudaModule(""));
        RM_RETURN_IF_ERROR(loaded->devices().status());
        return loaded;
      }());
  return *module;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaMember(const BackendOptions& options,
                                                          const Dataset& dataset) {
  if (!Module().ok()) return absl::UnavailableError(Module().status().message());
  return (*Module())->create_backend(options, dataset);
}

}  // namespace ringmaster
