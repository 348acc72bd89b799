// What every backend asks of its options and data before it starts.
//
// Thread safety: pure functions.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "common/dataset.h"
#include "kernels/backend.h"

namespace ringmaster {

// INVALID_ARGUMENT, saying what to change, if the model, the optimizer or the plan does not fit the
// data set, or the data set contradicts itself.
absl::Status CheckBackendOptions(const BackendOptions& options, const Dataset& dataset);

// What a reproducible backend returns when a gradient cannot be summed exactly. `place`: rank and
// step, for people.
absl::Status OutOfRangeError(const std::string& place);

}  // namespace ringmaster
