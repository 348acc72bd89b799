// How many processes a node runs, and on what: one answer for `ringmaster train` and for the agent.
//
// Thread safety: pure functions and plain values; ProbeNode starts a process.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/settings.h"

namespace ringmaster {

// What a node has, as `ringmaster-worker probe` finds it in a process of its own, so that whoever
// asks stays free of CUDA.
struct NodeSurvey {
  int cores = 1;                  // that this process may use
  std::vector<std::string> gpus;  // one description each, by ordinal
  std::string why_no_gpu;         // when there is none
  std::string cuda_versions;      // for people; empty without the CUDA module
};

std::string ToJson(const NodeSurvey& survey);
// INVALID_ARGUMENT: not what ToJson wrote.
absl::StatusOr<NodeSurvey> ParseNodeSurvey(const std::string& json);

// Runs `ringmaster-worker probe`. Codes: those of starting it; INTERNAL if it failed.
absl::StatusOr<NodeSurvey> ProbeNode(const std::string& cuda_libs, bool look_for_gpus);

struct NodeLayout {
  int processes = 1;
  bool cuda = false;
  std::string reason;  // why this, for people
};

// Settles `processes` ("auto", "gpu", "cpu" or a number; see --processes) and `backend`.
// `cpu_default` is how many processes "auto" means on CPU. INVALID_ARGUMENT, with the reason: the
// GPU was asked for and there is none, or fewer than processes.
absl::StatusOr<NodeLayout> PlanNode(const std::string& processes, BackendChoice backend,
                                    const NodeSurvey& survey, int cpu_default);

// CPU threads for each of `processes`: `threads` if it is not 0, else the share of the cores.
int ThreadsPerProcess(int threads, int cores, int processes);

// Cores that this process may use.
int UsableCores();

}  // namespace ringmaster
