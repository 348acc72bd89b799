// The model that a run trains on a data set.
//
// Thread safety: pure function.
#pragma once

#include "absl/status/statusor.h"
#include "common/dataset.h"
#include "common/model.h"
#include "common/settings.h"

namespace ringmaster {

// settings.layers, or image size, 128, classes. INVALID_ARGUMENT if the widths do not fit the data
// set.
absl::StatusOr<ModelSpec> ModelFor(const Settings& settings, const Dataset& dataset);

}  // namespace ringmaster
