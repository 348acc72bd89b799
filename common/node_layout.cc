#include "common/node_layout.h"

#include <sched.h>

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/status_macros.h"
#include "common/subprocess.h"
#include "nlohmann/json.hpp"

namespace ringmaster {
namespace {

constexpr absl::Duration kProbeTimeout = absl::Seconds(60);

std::string Count(size_t count, const std::string& noun) {
  return absl::StrCat(count, " ", noun, count == 1 ? "" : noun.ends_with("s") ? "es" : "s");
}

absl::Status NoGpu(const NodeSurvey& survey) {
  return absl::InvalidArgumentError(
      absl::StrCat("a GPU was asked for, but none can be used: ", survey.why_no_gpu,
                   ". Pass --backend cpu to compute on the CPU"));
}

absl::StatusOr<NodeLayout> PlanGpus(int wanted, const NodeSurvey& survey) {
  const int gpus = static_cast<int>(survey.gpus.size());
  const int processes = wanted == 0 ? gpus : wanted;
  if (processes > gpus) {
    return absl::InvalidArgumentError(
        absl::StrCat(Count(processes, "process"), " on GPUs were asked for, but there is only ",
                     Count(gpus, "GPU"), ". Ask for fewer, or pass --backend cpu"));
  }
  return NodeLayout{processes, true, absl::StrCat("one process per GPU (", survey.gpus[0], ")")};
}

}  // namespace

std::string ToJson(const NodeSurvey& survey) {
  return nlohmann::json{{"cores", survey.cores},
                        {"gpus", survey.gpus},
                        {"why_no_gpu", survey.why_no_gpu},
                        {"cuda_versions", survey.cuda_versions}}
      .dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

absl::StatusOr<NodeSurvey> ParseNodeSurvey(const std::string& json) {
  const auto parsed = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  NodeSurvey survey;
  if (!parsed.is_object() || !parsed.contains("cores") || !parsed["cores"].is_number_integer() ||
      !parsed.contains("gpus") || !parsed["gpus"].is_array() || !parsed.contains("why_no_gpu") ||
      !parsed["why_no_gpu"].is_string() || !parsed.contains("cuda_versions") ||
      !parsed["cuda_versions"].is_string()) {
    return absl::InvalidArgumentError("not a node survey: " + json);
  }
  survey.cores = std::max(1, parsed["cores"].get<int>());
  for (const auto& gpu : parsed["gpus"]) {
    if (!gpu.is_string()) return absl::InvalidArgumentError("not a node survey: " + json);
    survey.gpus.push_back(gpu.get<std::string>());
  }
  survey.why_no_gpu = parsed["why_no_gpu"].get<std::string>();
  survey.cuda_versions = parsed["cuda_versions"].get<std::string>();
  return survey;
}

absl::StatusOr<NodeSurvey> ProbeNode(const std::string& cuda_libs, bool look_for_gpus) {
  if (!look_for_gpus) return NodeSurvey{UsableCores(), {}, "the CPU was asked for", ""};
  ChildOptions options;
  RM_ASSIGN_OR_RETURN(const std::string program, ProgramBeside("ringmaster-worker"));
  options.argv = {program, "probe"};
  if (!cuda_libs.empty()) options.argv.push_back("--cuda-libs=" + cuda_libs);
  options.unset_environment = SettingsEnvironment();
  options.pipe_stdout = true;
  RM_ASSIGN_OR_RETURN(const Captured captured, RunAndCapture(options, kProbeTimeout));
  if (!captured.status.ok()) {
    return absl::InternalError("looking for GPUs failed: ringmaster-worker probe " +
                               captured.status.Describe());
  }
  return ParseNodeSurvey(captured.out);
}

absl::StatusOr<NodeLayout> PlanNode(const std::string& processes, BackendChoice backend,
                                    const NodeSurvey& survey, int cpu_default) {
  int wanted = 0;  // 0: as many as suits
  const bool number = absl::SimpleAtoi(processes, &wanted);
  if (processes == "gpu" && backend == BackendChoice::kCpu) {
    return absl::InvalidArgumentError("--processes gpu and --backend cpu contradict each other");
  }
  const bool must_gpu = processes == "gpu" || backend == BackendChoice::kCuda;
  const bool must_cpu = backend == BackendChoice::kCpu || (processes == "cpu" && !must_gpu);
  if (processes == "cpu" && must_gpu) {
    return absl::InvalidArgumentError("--processes cpu and --backend cuda contradict each other");
  }
  if (must_gpu && survey.gpus.empty()) return NoGpu(survey);
  if (must_gpu) return PlanGpus(wanted, survey);
  const int count = number ? wanted : cpu_default;
  if (must_cpu) return NodeLayout{count, false, "the CPU was asked for"};
  if (survey.gpus.empty()) return NodeLayout{count, false, survey.why_no_gpu};
  if (number && wanted > static_cast<int>(survey.gpus.size())) {
    return NodeLayout{count, false,
                      absl::StrCat(Count(wanted, "process"), " were asked for, and there is only ",
                                   Count(survey.gpus.size(), "GPU"))};
  }
  return PlanGpus(wanted, survey);
}

int ThreadsPerProcess(int threads, int cores, int processes) {
  return threads > 0 ? threads : std::max(1, cores / std::max(1, processes));
}

int UsableCores() {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  return sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
}

}  // namespace ringmaster
