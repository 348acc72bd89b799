#include "worker/agent.h"

#include <signal.h>

#include <string>
#include <utility>
#include <vector>

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
#include "worker/restart_policy.h"
#include "worker/state_vault.h"
#include "worker/supervisor.h"

namespace ringmaster {
namespace {

// The numbers under which the processes find what they inherit.
constexpr int kDataFd = 10;
constexpr int kNoteFd = 11;
constexpr int kVaultFd = 12;

static_assert(kExitConsequence == static_cast<int>(ProcessEnd::kRunIsOver));
static_assert(kExitRespawn == static_cast<int>(ProcessEnd::kRespawn));
static_assert(kExitGaveUp == static_cast<int>(ProcessEnd::kGaveUp));

// How a failed child is told of: where it was, what becomes of it.
std::string Consequence(const ChildFailure& failure) {
  switch (failure.then) {
    case ChildFailure::Then::kNodeEnds:
      return "; this node cannot go on without it";
    case ChildFailure::Then::kRunIsOver:
      return "; the run is over";
    case ChildFailure::Then::kRestart:
      break;
  }
  if (failure.wait == absl::ZeroDuration()) return "; it is started anew";
  return absl::StrCat("; it is started anew in ", absl::FormatDuration(failure.wait), ", because ",
                      failure.futile_lives, " lives in a row ended before they had trained");
}

// One death may have any cause; several in a row have a reason that the user needs to see.
bool ShowsLastLines(const ChildFailure& failure) {
  return !failure.last_lines.empty() &&
         (failure.then == ChildFailure::Then::kNodeEnds || failure.futile_lives >= 2 ||
          spdlog::should_log(spdlog::level::debug));
}

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
    options.on_failure = [](const ChildFailure& failure) {
      if (failure.status.signal == 0) return;  // it said why itself
      spdlog::error("the process that fetches the data set {}", failure.status.Describe());
    };
    Supervisor supervisor(&signals_, options);
    supervisor.Add(std::move(child));
    return ExitCode(supervisor.Run());
  }

  static int ExitCode(const SupervisorResult& result) {
    if (result.stop_signal != 0) return ExitCodeForSignal(result.stop_signal);
    if (result.ok) return 0;
    const bool wrong =
        result.cause && MeaningOf(result.cause->status) == ProcessEnd::kMisconfigured;
    return wrong ? 2 : 1;
  }

  absl::StatusOr<int> RunProcesses() {
    RM_ASSIGN_OR_RETURN(ProcessNotes notes, ProcessNotes::Create(layout_.processes));
    std::vector<StateVault> vaults;
    for (int i = 0; i < layout_.processes; ++i) {
      RM_ASSIGN_OR_RETURN(StateVault vault, StateVault::Create());
      vaults.push_back(std::move(vault));
    }
    const auto start = [&](size_t index) {
      const int local_rank = static_cast<int>(index);
      notes.Forget(local_rank);
      return Child::Start(ProcessOptions(local_rank, notes.fd(), vaults[index].fd()));
    };
    Supervisor::Options options;
    options.restart = start;
    options.trained = [&notes](size_t i) { return notes[static_cast<int>(i)].step >= 0; };
    options.on_failure = [&](const ChildFailure& failure) { Explain(failure, notes); };
    options.label = [&](size_t i) { return Label(notes, i); };
    Supervisor supervisor(&signals_, options);
    for (int i = 0; i < layout_.processes; ++i) {
      RM_ASSIGN_OR_RETURN(Child child, start(static_cast<size_t>(i)));
      supervisor.Add(std::move(child));
    }
    return ExitCode(supervisor.Run());
  }

  // The same for each life of a process.
  ChildOptions ProcessOptions(int local_rank, int note_fd, int vault_fd) const {
    Settings settings = settings_;
    settings.data_fd = kDataFd;
    settings.note_fd = kNoteFd;
    settings.vault_fd = kVaultFd;
    settings.local_rank = local_rank;
    settings.local_world_size = layout_.processes;
    settings.node_id = node_id_;
    settings.backend = layout_.cuda ? BackendChoice::kCuda : BackendChoice::kCpu;
    ChildOptions options = Options("process", settings);
    options.descriptors.push_back({note_fd, kNoteFd});
    options.descriptors.push_back({vault_fd, kVaultFd});
    return options;
  }

  std::string Label(ProcessNotes& notes, size_t local_rank) const {
    const int rank = notes[static_cast<int>(local_rank)].rank;
    if (rank < 0) return absl::StrCat(host_, " local ", local_rank);
    return absl::StrCat(host_, " rank ", rank);
  }

  void Explain(const ChildFailure& failure, ProcessNotes& notes) const {
    const ProcessNote& note = notes[static_cast<int>(failure.index)];
    std::string who = absl::StrCat("local rank ", failure.index);
    if (note.rank >= 0) {
      who = absl::StrCat("rank ", note.rank.load(), " of ", note.world_size.load(), " (", who, ")");
    }
    std::string when = "before training";
    if (note.step >= 0) {
      when = absl::StrCat("after epoch ", note.epoch.load(), ", step ", note.step.load());
    }
    std::string lines;
    if (ShowsLastLines(failure)) {
      lines = absl::StrCat(". Its last lines:\n  ", absl::StrJoin(failure.last_lines, "\n  "));
    }
    const bool fatal = failure.then == ChildFailure::Then::kNodeEnds;
    spdlog::log(fatal ? spdlog::level::err : spdlog::level::warn,
                "{} on host {}, pid {}, {} {}{}{}", who, host_, failure.pid,
                failure.status.Describe(), when, Consequence(failure), lines);
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
