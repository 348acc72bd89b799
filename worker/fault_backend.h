// A Backend that misbehaves on purpose, so that tests can show what the run does about it.
//
// Thread safety and everything else: as the backend it wraps.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace ringmaster {

// Wraps `backend` as `fault` (the environment's RINGMASTER_FAULT) says; empty: returns it as it is.
//   drop-sample      rank 0 leaves one sample out of its slice, in step 3 of epoch 0
//   fail-step:N      the last rank fails with INTERNAL in step N of epoch 0
//   hang-step:N      the last rank's device hangs in the Nth step of epoch 0 that its process does
//   slow-step:MS     each step takes MS milliseconds longer
// INVALID_ARGUMENT: anything else.
absl::StatusOr<std::unique_ptr<Backend>> InjectFault(const std::string& fault,
                                                     std::unique_ptr<Backend> backend);

}  // namespace ringmaster
