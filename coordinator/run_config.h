// From settings and data to what is trained.
//
// Thread safety: pure functions.
#pragma once

#include "absl/status/statusor.h"
#include "common/checkpoint.h"
#include "common/dataset.h"
#include "common/model.h"
#include "common/settings.h"
#include "proto/training.pb.h"

namespace ringmaster {

// Everything that decides the result of a run. INVALID_ARGUMENT: the settings do not fit the data
// set, or each other.
absl::StatusOr<TrainingConfig> MakeTrainingConfig(const Settings& settings, const Dataset& dataset,
                                                  const std::string& data_digest);

ModelSpec ModelOf(const TrainingConfig& config);

// The same as checkpoints have it.
TrainingRecipe RecipeOf(const TrainingConfig& config);

}  // namespace ringmaster
