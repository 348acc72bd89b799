#include "cli/train.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/dry_run.h"
#include "common/logging.h"
#include "common/node_layout.h"
#include "common/status_macros.h"
#include "common/subprocess.h"

namespace ringmaster {
namespace {

// Number under which the coordinator finds its end of the ready pipe.
constexpr int kReadyFd = 10;
// Reading and checking a data set of several GB takes a while.
constexpr absl::Duration kReadyTimeout = absl::Seconds(120);
// After the other one has ended: how long each may take by itself, and then after SIGTERM.
constexpr absl::Duration kOwnEnd = absl::Seconds(5);
constexpr absl::Duration kReportTime = absl::Seconds(60);
constexpr absl::Duration kGrace = absl::Seconds(4);

// One of the two programs, and when it is to be pressed to end.
class Part {
 public:
  absl::Status Start(const ChildOptions& options) {
    RM_ASSIGN_OR_RETURN(child_, Child::Start(options));
    return absl::OkStatus();
  }

  bool running() { return child_ && !child_->Poll(); }
  std::optional<ExitStatus> status() { return child_ ? child_->Poll() : std::nullopt; }
  // Becomes readable at its end; for one that was started.
  int pidfd() const { return child_->pidfd(); }
  // Whether it was told to end: its exit status then says nothing new.
  bool told() const { return told_; }
  absl::Time next_press() const { return told_ ? kill_at_ : terminate_at_; }

  void EndBy(absl::Time time) { terminate_at_ = std::min(terminate_at_, time); }
  void Tell(int signal) {
    if (!running()) return;
    told_ = true;
    kill_at_ = absl::Now() + kGrace;
    child_->Signal(signal);
  }
  void Kill() {
    if (running()) child_->Signal(SIGKILL);
  }
  void Press() {
    if (!told_ && absl::Now() >= terminate_at_) Tell(SIGTERM);
    if (told_ && absl::Now() >= kill_at_) {
      kill_at_ = absl::InfiniteFuture();
      Kill();
    }
  }

 private:
  std::optional<Child> child_;
  absl::Time terminate_at_ = absl::InfiniteFuture();
  absl::Time kill_at_ = absl::InfiniteFuture();
  bool told_ = false;
};

class TrainRun {
 public:
  TrainRun(const Settings& settings, const NodeLayout& layout, StopSignals signals)
      : settings_(settings), layout_(layout), signals_(std::move(signals)) {}

  absl::StatusOr<int> Run() {
    RM_RETURN_IF_ERROR(StartCoordinator());
    RM_ASSIGN_OR_RETURN(const std::string address, WaitUntilReady());
    if (!address.empty()) RM_RETURN_IF_ERROR(StartAgent(address));
    Watch();
    return ExitCode();
  }

 private:
  static ChildOptions Options(const std::string& program, const std::vector<std::string>& flags) {
    ChildOptions options;
    options.argv = {program};
    options.argv.insert(options.argv.end(), flags.begin(), flags.end());
    options.unset_environment = SettingsEnvironment();
    return options;
  }

  absl::Status StartCoordinator() {
    Settings settings = settings_;
    settings.workers = {layout_.processes, layout_.processes};
    if (settings.listen.empty()) settings.listen = "127.0.0.1:0";
    settings.ready_fd = kReadyFd;
    RM_ASSIGN_OR_RETURN(const std::string program, ProgramBeside("ringmaster-coordinator"));
    RM_ASSIGN_OR_RETURN(Pipe ready, MakePipe());
    ChildOptions options = Options(program, ToFlags(kProgramCoordinator, settings));
    options.descriptors = {{ready.write.get(), kReadyFd}};
    RM_RETURN_IF_ERROR(coordinator_.Start(options));
    ready_ = std::move(ready.read);
    fcntl(ready_.get(), F_SETFL, O_NONBLOCK);
    return absl::OkStatus();
  }

  // The coordinator's address, or empty if the run is over already.
  absl::StatusOr<std::string> WaitUntilReady() {
    const absl::Time deadline = absl::Now() + kReadyTimeout;
    std::string line;
    while (absl::Now() < deadline) {
      WaitReadable({ready_.get(), signals_.fd()}, deadline - absl::Now());
      HandleSignals();
      char buffer[256];
      const ssize_t count = read(ready_.get(), buffer, sizeof buffer);
      // Closed before a line came: it has ended, and said why.
      if (count == 0 || stop_signal_ != 0) return std::string();
      if (count > 0) line.append(buffer, static_cast<size_t>(count));
      if (line.ends_with('\n')) return std::string(absl::StripAsciiWhitespace(line));
    }
    return absl::DeadlineExceededError(
        absl::StrCat("the coordinator was not ready within ", absl::FormatDuration(kReadyTimeout)));
  }

  absl::Status StartAgent(const std::string& address) {
    Settings settings = settings_;
    settings.coordinator = address;
    settings.data_dir.clear();  // the coordinator sends it
    settings.processes = absl::StrCat(layout_.processes);
    settings.backend = layout_.cuda ? BackendChoice::kCuda : BackendChoice::kCpu;
    RM_ASSIGN_OR_RETURN(const std::string program, ProgramBeside("ringmaster-worker"));
    return agent_.Start(Options(program, ToFlags(kProgramWorker, settings)));
  }

  void Watch() {
    bool coordinator_ran = true;
    bool agent_ran = true;
    for (;;) {
      // Looked at once a turn: one that ends from here on makes its pidfd readable.
      const bool coordinator_runs = coordinator_.running();
      const bool agent_runs = agent_.running();
      if (!coordinator_runs && !agent_runs) return;
      if (std::exchange(coordinator_ran, coordinator_runs) && !coordinator_runs) {
        agent_.EndBy(absl::Now() + (stop_signal_ == 0 ? kOwnEnd : absl::ZeroDuration()));
      }
      if (std::exchange(agent_ran, agent_runs) && !agent_runs) OnAgentEnd();
      coordinator_.Press();
      agent_.Press();
      const absl::Time wake = std::min(coordinator_.next_press(), agent_.next_press());
      WaitReadable({coordinator_runs ? coordinator_.pidfd() : -1, agent_runs ? agent_.pidfd() : -1,
                    signals_.fd()},
                   wake - absl::Now());
      HandleSignals();
    }
  }

  // The coordinator sees a lost worker by itself and says so; it cannot see one that never came.
  void OnAgentEnd() {
    const std::optional<ExitStatus> status = agent_.status();
    const bool never_came = status && status->code == 2;
    const bool ok = status && status->ok();
    coordinator_.EndBy(absl::Now() + (ok           ? kReportTime
                                      : never_came ? absl::ZeroDuration()
                                                   : kOwnEnd));
  }

  void HandleSignals() {
    const int signal = signals_.Next();
    if (signal == 0) return;
    if (stop_signal_ != 0) {  // asked twice: no more patience
      coordinator_.Kill();
      agent_.Kill();
      return;
    }
    stop_signal_ = signal;
    // The coordinator tells the workers; the agent is only pressed when that does not help.
    coordinator_.Tell(signal == SIGINT ? SIGINT : SIGTERM);
    agent_.EndBy(absl::Now() + kGrace / 2);
  }

  int ExitCode() {
    if (stop_signal_ != 0) return ExitCodeForSignal(stop_signal_);
    const ExitStatus coordinator = coordinator_.status().value_or(ExitStatus{});
    const ExitStatus agent = agent_.status().value_or(ExitStatus{});
    if (coordinator.signal != 0 && !coordinator_.told()) {
      spdlog::error("the coordinator {}", coordinator.Describe());
    }
    if (agent.signal != 0 && !agent_.told()) spdlog::error("the agent {}", agent.Describe());
    if (agent.code == 2 || (coordinator.code == 2 && !coordinator_.told())) return 2;
    // An agent that had to be pressed after a good end does not spoil it.
    const bool agent_ok = agent.ok() || (agent_.told() && coordinator.ok());
    return coordinator.ok() && agent_ok ? 0 : 1;
  }

  const Settings settings_;
  const NodeLayout layout_;
  StopSignals signals_;
  UniqueFd ready_;
  Part coordinator_;
  Part agent_;
  int stop_signal_ = 0;
};

absl::StatusOr<int> Train(const Settings& settings) {
  if (settings.workers.given() && settings.workers.min != settings.workers.max) {
    return absl::InvalidArgumentError(
        "--workers: train starts the processes itself and wants one number; a range is for "
        "ringmaster-coordinator");
  }
  Settings resolved = settings;
  RM_ASSIGN_OR_RETURN(resolved.data_dir, FindDataDirectory(settings));
  RM_ASSIGN_OR_RETURN(const NodeSurvey survey,
                      ProbeNode(settings.cuda_libs, settings.backend != BackendChoice::kCpu));
  const std::string processes =
      settings.workers.given() ? absl::StrCat(settings.workers.min) : "auto";
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
