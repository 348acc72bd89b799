#include "tests/kernels/backend_fixture.h"

namespace ringmaster {

absl::StatusOr<std::unique_ptr<Backend>> CreateEmulatedMember(const BackendOptions& /*options*/,
                                                              const Dataset& /*dataset*/) {
  return absl::UnavailableError("ThreadSanitizer does not follow the emulation's contexts");
}

}  // namespace ringmaster
