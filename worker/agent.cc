#include "worker/agent.h"

#include <signal.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/identity.h"
#include "common/logging.h"
#include "common/node_layout.h"
#include "common/status_macros.h"
#include "common/subprocess.h"
#include "worker/data_file.h"
#include "worker/process.h"
#include "worker/process_notes.h"
#include "worker/supervisor.h"

namespace ringmaster {
namespace {

// The numbers under which the processes find what they inherit.
constexpr int kDataFd = 10;
constexpr int kNoteFd = 11;

class Agent {
 public:
  Agent(const Settings& settings, StopSignals signals)
      : settings_(settings),
        signals_(std::move(signals)),
        host_(HostName()),
        node_id_(absl::StrCat(host_, "-", absl::Hex(RandomId(), absl::kZeroPad16))) {}

  absl::StatusOr<int> Run() {
    RM_ASSIGN_OR_RETURN(program_, ProgramBeside("ringmaster-worker"));
    RM_RETURN_IF_ERROR(Plan());
    RM_ASSIGN_OR_RETURN(data_, MakeDataFile());
    RM_ASSIGN_OR_RETURN(const int fetched, Fetch());
    if (fetched != 0) return fetched;
    return RunProcesses();
  }

 private:
  absl::Status Plan() {
    const bool look = settings_.backend != BackendChoice::kCpu && settings_.processes != "cpu";
    RM_ASSIGN_OR_RETURN(const NodeSurvey survey, ProbeNode(settings_.cuda_libs, look));
    RM_ASSIGN_OR_RETURN(layout_, PlanNode(settings_.processes, settings_.backend, survey, 1));
    spdlog::info("{} process{} on {}: {}", layout_.processes, layout_.processes == 1 ? "" : "es",
                 layout_.cuda ? "GPU" : "CPU", layout_.reason);
    return absl::OkStatus();
  }

  // What every process of this node is told.
  ChildOptions Options(const std::string& command, const Settings& settings) const {
    ChildOptions options;
    options.argv = {program_, command};
    for (std::string& flag : ToFlags(kProgramProcess, settings)) {
      options.argv.push_back(std::move(flag));
    }
    options.unset_environment = SettingsEnvironment();
    options.set_environment = {{"RINGMASTER_LOG", "child"}};
    options.descriptors = {{data_.get(), kDataFd}};
    options.pipe_stdout = true;
    options.pipe_stderr = true;
    return options;
  }

  // Returns the exit code to end with, 0 to go on.
  absl::StatusOr<int> Fetch() {
    Settings settings = settings_;
    settings.data_fd = kDataFd;
    RM_ASSIGN_OR_RETURN(Child child, Child::Start(Options("fetch", settings)));
    Supervisor::Options options;
    options.label = [this](size_t) { return host_ + " data"; };
    Supervisor supervisor(&signals_, options);
    supervisor.Add(std::move(child));
    const SupervisorResult result = supervisor.Run();
    if (result.stop_signal != 0) return ExitCodeForSignal(result.stop_signal);
    if (result.all_ok) return 0;
    if (result.cause && result.cause->status.signal != 0) {
      spdlog::error("the process that fetches the data set {}", result.cause->status.Describe());
    }
    return result.cause && result.cause->status.code == 2 ? 2 : 1;
  }

  absl::StatusOr<int> RunProcesses() {
    RM_ASSIGN_OR_RETURN(ProcessNotes notes, ProcessNotes::Create(layout_.processes));
    Supervisor::Options options;
    options.consequence_code = kExitConsequence;
    options.label = [this, &notes](size_t i) { return Label(notes, i); };
    Supervisor supervisor(&signals_, options);
    for (int i = 0; i < layout_.processes; ++i) {
      Settings settings = settings_;
      settings.data_fd = kDataFd;
      settings.note_fd = kNoteFd;
      settings.local_rank = i;
      settings.local_world_size = layout_.processes;
      settings.node_id = node_id_;
      settings.backend = layout_.cuda ? BackendChoice::kCuda : BackendChoice::kCpu;
      ChildOptions child_options = Options("process", settings);
      child_options.descriptors.push_back({notes.fd(), kNoteFd});
      RM_ASSIGN_OR_RETURN(Child child, Child::Start(child_options));
      supervisor.Add(std::move(child));
    }
    const SupervisorResult result = supervisor.Run();
    if (result.cause && result.stop_signal == 0) Explain(*result.cause, notes);
    if (result.stop_signal != 0) return ExitCodeForSignal(result.stop_signal);
    if (result.all_ok) return 0;
    return result.cause && result.cause->status.code == 2 ? 2 : 1;
  }

  std::string Label(ProcessNotes& notes, size_t local_rank) const {
    const int rank = notes[static_cast<int>(local_rank)].rank;
    if (rank < 0) return absl::StrCat(host_, " local ", local_rank);
    return absl::StrCat(host_, " rank ", rank);
  }

  void Explain(const ChildFailure& cause, ProcessNotes& notes) const {
    const ProcessNote& note = notes[static_cast<int>(cause.index)];
    std::string who = absl::StrCat("local rank ", cause.index);
    if (note.rank >= 0) {
      who = absl::StrCat("rank ", note.rank.load(), " of ", note.world_size.load(), " (", who, ")");
    }
    std::string when = "before training";
    if (note.step >= 0) {
      when = absl::StrCat("after epoch ", note.epoch.load(), ", step ", note.step.load());
    }
    std::string lines;
    if (!cause.last_lines.empty()) {
      lines = absl::StrCat(". Its last lines:\n  ", absl::StrJoin(cause.last_lines, "\n  "));
    }
    spdlog::error("{} on host {}, pid {}, {} {}; the run cannot go on without it{}", who, host_,
                  cause.pid, cause.status.Describe(), when, lines);
  }

  const Settings settings_;
  StopSignals signals_;
  const std::string host_;
  const std::string node_id_;
  std::string program_;
  NodeLayout layout_;
  UniqueFd data_;
};

}  // namespace

int RunAgent(const Settings& settings) {
  auto signals = StopSignals::Create();
  const absl::StatusOr<int> code =
      signals.ok() ? Agent(settings, *std::move(signals)).Run() : signals.status();
  if (code.ok()) return *code;
  LogError(code.status());
  return absl::IsInvalidArgument(code.status()) ? 2 : 1;
}

}  // namespace ringmaster
