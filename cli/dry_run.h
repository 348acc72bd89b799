// `ringmaster train --dry-run`: what would be trained, by whom and where.
//
// Thread safety: pure functions, but for PrintDryRun, which reads the data set and writes to
// stdout.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "common/model.h"
#include "common/node_layout.h"
#include "common/sampling_plan.h"
#include "common/settings.h"

namespace ringmaster {

// The layers, their output widths and parameters, as Keras's summary().
std::string DescribeModel(const ModelSpec& model);

// Steps, and which positions of the first and last batches each rank computes.
std::string DescribeShards(const SamplingPlan& plan, uint32_t epochs, int world_size);

// Prints all of it. Creates nothing. Codes: those of reading the data set and of ModelFor.
absl::Status PrintDryRun(const Settings& settings, const NodeLayout& layout,
                         const NodeSurvey& survey);

}  // namespace ringmaster
