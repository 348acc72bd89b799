// RunPlan: what a run trains, out of the coordinator's configuration.
//
// Thread safety: plain values and pure functions.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/dataset.h"
#include "common/model.h"
#include "common/sampling_plan.h"
#include "common/timeline.h"
#include "proto/training.pb.h"

namespace ringmaster {

struct RunPlan {
  ModelSpec model;
  OptimizerSpec optimizer;
  SamplingPlan sampling;
  uint32_t epochs = 0;
  uint32_t num_test_samples = 0;
  bool reproducible = false;

  Timeline timeline() const { return Timeline(sampling, epochs); }
};

// UNIMPLEMENTED: an optimizer that this program does not know.
absl::StatusOr<RunPlan> PlanFrom(const TrainingConfig& config);

// FAILED_PRECONDITION, with both: the run trains on other data than `dataset` with `digest`.
absl::Status CheckDataset(const TrainingConfig& config, const Dataset& dataset,
                          const std::string& digest);

}  // namespace ringmaster
