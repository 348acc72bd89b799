#include "cli/train.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/chaos_plan.h"
#include "cli/dry_run.h"
#include "cli/train_run.h"
#include "common/logging.h"
#include "common/node_layout.h"
#include "common/status_macros.h"
#include "common/subprocess.h"

namespace ringmaster {
namespace {

// How many processes train is to start.
absl::StatusOr<std::string> Processes(const CountRange& workers) {
  if (!workers.given()) return "auto";
  if (workers.max == std::numeric_limits<int>::max()) {
    return absl::InvalidArgumentError(
        "--workers: train starts the processes itself and wants to know how many at most, as 2:4; "
        "a range without an end is for ringmaster-coordinator");
  }
  return absl::StrCat(workers.max);
}

absl::StatusOr<int> Train(const Settings& settings) {
  RM_ASSIGN_OR_RETURN(const std::string processes, Processes(settings.workers));
  if (!settings.chaos.empty()) RM_RETURN_IF_ERROR(ParseChaosSpec(settings.chaos).status());
  Settings resolved = settings;
  RM_ASSIGN_OR_RETURN(resolved.data_dir, FindDataDirectory(settings));
  RM_ASSIGN_OR_RETURN(const NodeSurvey survey,
                      ProbeNode(settings.cuda_libs, settings.backend != BackendChoice::kCpu));
  // Two on CPU, so that the all-reduce is always real.
  RM_ASSIGN_OR_RETURN(const NodeLayout layout,
                      PlanNode(processes, settings.backend, survey, std::min(2, survey.cores)));
  if (settings.dry_run) {
    RM_RETURN_IF_ERROR(PrintDryRun(resolved, layout, survey));
    return 0;
  }
  spdlog::info("{} worker process{} on {}: {}", layout.processes, layout.processes == 1 ? "" : "es",
               layout.cuda ? "GPU" : "CPU", layout.reason);
  RM_ASSIGN_OR_RETURN(StopSignals signals, StopSignals::Create());
  return TrainRun(resolved, layout, std::move(signals)).Run();
}

}  // namespace

int RunTrain(const Settings& settings) {
  const absl::StatusOr<int> code = Train(settings);
  if (code.ok()) return *code;
  LogError(code.status());
  const bool wrong_input = absl::IsInvalidArgument(code.status()) ||
                           absl::IsNotFound(code.status()) || absl::IsDataLoss(code.status());
  return wrong_input ? 2 : 1;
}

}  // namespace ringmaster
