#include "cli/train_run.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/logging.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

// Number under which the coordinator finds its end of the ready pipe.
constexpr int kReadyFd = 10;
// Reading and checking a data set of several GB takes a while.
constexpr absl::Duration kReadyTimeout = absl::Seconds(120);
// After the other one has ended: how long each may take by itself.
constexpr absl::Duration kOwnEnd = absl::Seconds(5);
constexpr absl::Duration kReportTime = absl::Seconds(60);
// When we are told to stop: how long the coordinator may take to let all workers stop at one step,
// take a checkpoint and tell everybody, before the agent is pressed; how long the agent may take by
// itself once the coordinator is done.
constexpr absl::Duration kStopTime = absl::Seconds(6);
constexpr absl::Duration kStoppedTime = absl::Seconds(1);
// From SIGTERM to SIGKILL. The agent's has room for that of its processes; the coordinator's for
// kStopTime and the agent.
constexpr absl::Duration kAgentGrace = absl::Seconds(4);
constexpr absl::Duration kCoordinatorGrace = absl::Seconds(10);
constexpr absl::Duration kChaosGrace = absl::Seconds(1);

ChildOptions Options(const std::string& program, const std::vector<std::string>& flags) {
  ChildOptions options;
  options.argv = {program};
  options.argv.insert(options.argv.end(), flags.begin(), flags.end());
  options.unset_environment = SettingsEnvironment();
  return options;
}

}  // namespace

ReadyLine ReadyLine::Parse(const std::string& line) {
  const size_t tab = line.find('\t');
  if (tab == std::string::npos) return {line, ""};
  return {line.substr(0, tab), line.substr(tab + 1)};
}

absl::StatusOr<int> TrainRun::Run() {
  RM_RETURN_IF_ERROR(StartCoordinator());
  for (;;) {
    RM_RETURN_IF_ERROR(TakeEnds());
    if (coordinator_.done() && agent_.done() && chaos_.done()) break;
    Press();
    Wait();
    HandleSignals();
    RM_RETURN_IF_ERROR(ReadReady());
  }
  const int exit_code = ExitCode();
  SayHowToGoOn(exit_code);
  return exit_code;
}

// From the second start on, the coordinator takes up its own run, where its workers look for it.
Settings TrainRun::CoordinatorSettings() const {
  Settings settings = settings_;
  settings.workers = {settings.workers.given() ? settings.workers.min : layout_.processes,
                      layout_.processes};
  settings.ready_fd = kReadyFd;
  if (settings.listen.empty()) settings.listen = "127.0.0.1:0";
  if (!ready_.address.empty()) {
    settings.listen = ready_.address;
    settings.run_dir = ready_.run_dir;
    settings.resume = "auto";
  }
  return settings;
}

absl::Status TrainRun::StartCoordinator() {
  RM_ASSIGN_OR_RETURN(const std::string program, ProgramBeside("ringmaster-coordinator"));
  RM_ASSIGN_OR_RETURN(Pipe ready, MakePipe());
  ChildOptions options = Options(program, ToFlags(kProgramCoordinator, CoordinatorSettings()));
  options.descriptors = {{ready.write.get(), kReadyFd}};
  RM_RETURN_IF_ERROR(coordinator_.Start(options));
  ready_pipe_ = std::move(ready.read);
  fcntl(ready_pipe_.get(), F_SETFL, O_NONBLOCK);
  ready_text_.clear();
  ready_deadline_ = absl::Now() + kReadyTimeout;
  return absl::OkStatus();
}

absl::Status TrainRun::StartAgent() {
  Settings settings = settings_;
  settings.coordinator = ready_.address;
  settings.data_dir.clear();  // the coordinator sends it
  settings.processes = absl::StrCat(layout_.processes);
  settings.backend = layout_.cuda ? BackendChoice::kCuda : BackendChoice::kCpu;
  RM_ASSIGN_OR_RETURN(const std::string program, ProgramBeside("ringmaster-worker"));
  return agent_.Start(Options(program, ToFlags(kProgramWorker, settings)));
}

absl::Status TrainRun::StartChaos() {
  RM_ASSIGN_OR_RETURN(const std::string program, ProgramBeside("ringmaster"));
  Settings settings = settings_;
  settings.coordinator = ready_.address;
  std::vector<std::string> flags = ToFlags(kProgramChaos, settings);
  flags.insert(flags.begin(), "chaos");
  return chaos_.Start(Options(program, flags));
}

absl::Status TrainRun::ReadReady() {
  if (absl::Now() >= ready_deadline_) {
    return absl::DeadlineExceededError(
        absl::StrCat("the coordinator was not ready within ", absl::FormatDuration(kReadyTimeout)));
  }
  if (!ready_pipe_.valid()) return absl::OkStatus();
  char buffer[4096];
  const ssize_t count = read(ready_pipe_.get(), buffer, sizeof buffer);
  if (count > 0) ready_text_.append(buffer, static_cast<size_t>(count));
  if (count == 0) ready_pipe_.Close();  // before a line came: it has ended, and said why
  if (!ready_text_.ends_with('\n')) return absl::OkStatus();
  ready_text_.pop_back();
  return OnReady(ReadyLine::Parse(std::exchange(ready_text_, "")));
}

absl::Status TrainRun::OnReady(const ReadyLine& ready) {
  ready_pipe_.Close();
  ready_deadline_ = absl::InfiniteFuture();
  ready_ = ready;
  coordinator_.Ready();
  if (ending_ || agent_.ever_started()) return absl::OkStatus();
  RM_RETURN_IF_ERROR(StartAgent());
  return settings_.chaos.empty() ? absl::OkStatus() : StartChaos();
}

absl::Status TrainRun::TakeEnds() {
  if (const auto end = coordinator_.TakeEnd()) RM_RETURN_IF_ERROR(OnCoordinatorEnd(*end));
  if (const auto end = agent_.TakeEnd()) RM_RETURN_IF_ERROR(OnAgentEnd(*end));
  if (const auto end = chaos_.TakeEnd()) OnChaosEnd(*end);
  return absl::OkStatus();
}

absl::Status TrainRun::OnCoordinatorEnd(const ExitStatus& end) {
  const bool died = Died(end) && !coordinator_.told();
  if (died) RM_RETURN_IF_ERROR(ReadReady());  // what it wrote between the last look and its end
  ready_deadline_ = absl::InfiniteFuture();
  if (died && !ending_ && coordinator_.MayStartAgain()) return StartCoordinator();
  ending_ = true;
  agent_.EndBy(absl::Now() + (stop_signal_ == 0 ? kOwnEnd : kStoppedTime), kAgentGrace);
  chaos_.Tell(SIGTERM, kChaosGrace);
  return absl::OkStatus();
}

// The coordinator sees a lost worker by itself and says so; it cannot see one that never came.
absl::Status TrainRun::OnAgentEnd(const ExitStatus& end) {
  const bool killed = end.signal != 0 && !agent_.told();
  if (killed && !ending_ && agent_.MayStartAgain()) return StartAgent();
  const absl::Time now = absl::Now();
  if (end.ok()) {  // the coordinator has its report to write, even if it dies once more before
    coordinator_.EndBy(now + kReportTime, kCoordinatorGrace);
    return absl::OkStatus();
  }
  ending_ = true;
  const bool never_came = end.code == 2;
  coordinator_.EndBy(now + (never_came ? absl::ZeroDuration() : kOwnEnd), kCoordinatorGrace);
  return absl::OkStatus();
}

void TrainRun::OnChaosEnd(const ExitStatus& end) {
  if (end.ok() || chaos_.told()) return;
  if (end.code != 2) {
    spdlog::warn("the chaos driver {}; the run goes on without it", end.Describe());
    return;
  }
  // It said what is wrong with --chaos. To go on would look as if the run had survived it.
  ending_ = true;
  coordinator_.EndBy(absl::Now(), kCoordinatorGrace);
}

void TrainRun::HandleSignals() {
  const int signal = signals_.Next();
  if (signal == 0) return;
  ending_ = true;
  if (stop_signal_ != 0) {  // asked twice: no more patience
    for (Part* part : {&coordinator_, &agent_, &chaos_}) part->Kill();
    return;
  }
  stop_signal_ = signal;
  // The coordinator tells the workers; the agent is only pressed when that does not help.
  chaos_.Tell(SIGTERM, kChaosGrace);
  coordinator_.Tell(signal == SIGINT ? SIGINT : SIGTERM, kCoordinatorGrace);
  agent_.EndBy(absl::Now() + (coordinator_.done() ? kStoppedTime : kStopTime), kAgentGrace);
}

void TrainRun::Press() {
  for (Part* part : {&coordinator_, &agent_, &chaos_}) part->Press();
}

void TrainRun::Wait() {
  absl::Time wake = ready_deadline_;
  std::vector<int> descriptors = {signals_.fd(), ready_pipe_.get()};
  for (const Part* part : {&coordinator_, &agent_, &chaos_}) {
    wake = std::min(wake, part->next_press());
    descriptors.push_back(part->pidfd());
  }
  WaitReadable(descriptors, wake - absl::Now());
}

int TrainRun::ExitCode() const {
  if (stop_signal_ != 0) return ExitCodeForSignal(stop_signal_);
  const ExitStatus& coordinator = coordinator_.last_end();
  // It has audited the run. An agent that had to be pressed afterwards does not spoil that.
  if (coordinator.ok()) return 0;
  const bool wrong_chaos = chaos_.last_end().code == 2 && !chaos_.told();
  if (agent_.last_end().code == 2 || wrong_chaos) return 2;
  if (coordinator_.told()) return 1;
  // Somebody told the coordinator to stop, not us.
  const bool stopped = coordinator.signal == 0 && !Died(coordinator) && coordinator.code > 2;
  return stopped || coordinator.code == 2 ? coordinator.code : 1;
}

void TrainRun::SayHowToGoOn(int exit_code) const {
  if (exit_code <= ExitCodeForSignal(0) || coordinator_.last_end().ok()) return;
  if (ready_.run_dir.empty()) return;  // it had not begun
  // The run knows its settings, and would refuse others.
  Settings settings = settings_;
  settings.run_dir.clear();
  settings.chaos.clear();
  settings.resume = Settings().resume;
  const auto usual = FindDataDirectory(Settings());
  if (usual.ok() && *usual == settings.data_dir) settings.data_dir.clear();
  std::vector<std::string> flags = ToFlags(kProgramTrain, settings);
  flags.insert(flags.begin(), ready_.run_dir);
  spdlog::info("stopped; go on with: ringmaster train --run-dir {}", absl::StrJoin(flags, " "));
}

}  // namespace ringmaster
