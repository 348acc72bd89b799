#include "cli/chaos.h"

#include <signal.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "cli/chaos_plan.h"
#include "cli/host_process.h"
#include "cli/network_cut.h"
#include "common/credentials.h"
#include "common/identity.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "common/subprocess.h"
#include "proto/training.grpc.pb.h"

namespace ringmaster {
namespace {

constexpr char kWorkerProgram[] = "ringmaster-worker";
constexpr char kCoordinatorProgram[] = "ringmaster-coordinator";
constexpr absl::Duration kAnswerTime = absl::Seconds(1);
constexpr absl::Duration kRetryEvery = absl::Milliseconds(20);
// A coordinator that is silent for so long was not restarted: the run is over.
constexpr absl::Duration kSilenceIsTheEnd = absl::Seconds(20);
// How long a coordinator's successor may take to be started.
constexpr absl::Duration kSuccessorTime = absl::Seconds(10);
constexpr absl::Duration kLookEvery = absl::Milliseconds(1);

// A member that can be broken: it lives, on this host.
struct Target {
  HostProcess process;
  int rank;
};

class Chaos {
 public:
  Chaos(const std::string& coordinator, const ChaosSpec& spec, std::vector<ChaosAction> plan,
        StopSignals signals)
      : coordinator_(coordinator),
        spec_(spec),
        plan_(std::move(plan)),
        signals_(std::move(signals)),
        stub_(Training::NewStub(MakeChannel(coordinator))) {}

  absl::StatusOr<int> Run() {
    for (const ChaosAction& action : plan_) {
      Wait(action.wait);
      RM_ASSIGN_OR_RETURN(const bool done, Act(action));
      if (!done) break;
      ++done_;
    }
    spdlog::info("{} of {} actions done{}", done_, plan_.size(),
                 why_over_.empty() ? "" : ": " + why_over_);
    if (stop_signal_ != 0) return ExitCodeForSignal(stop_signal_);
    return done_ == plan_.size() ? 0 : 3;
  }

 private:
  bool over() const { return !why_over_.empty(); }

  // Returns early when this program is told to stop.
  void Wait(absl::Duration duration) {
    const absl::Time end = absl::Now() + duration;
    while (!over() && absl::Now() < end) {
      WaitReadable({signals_.fd()}, end - absl::Now());
      const int signal = signals_.Next();
      if (signal == 0) continue;
      stop_signal_ = signal;
      why_over_ = "told to stop";
    }
  }

  // Tries until the run trains and there is what the action wants. False: the run is over.
  absl::StatusOr<bool> Act(const ChaosAction& action) {
    absl::Time heard = absl::Now();
    while (!over()) {
      RunStatus status;
      if (Ask(&status)) {
        heard = absl::Now();
        if (status.phase() == RunStatus::FINISHED || status.phase() == RunStatus::FAILED) {
          why_over_ = "the run is over";
        } else if (status.phase() != RunStatus::WAITING) {
          RM_ASSIGN_OR_RETURN(const bool done, TryOn(status, action));
          if (done) return true;
        }
      } else if (absl::Now() - heard > kSilenceIsTheEnd) {
        why_over_ = absl::StrCat("no answer from the coordinator at ", coordinator_, " for ",
                                 absl::FormatDuration(kSilenceIsTheEnd));
      }
      Wait(kRetryEvery);
    }
    return false;
  }

  bool Ask(RunStatus* status) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kAnswerTime));
    return stub_->GetStatus(&context, GetStatusRequest(), status).ok();
  }

  // False: what it wants is not there at the moment.
  absl::StatusOr<bool> TryOn(const RunStatus& status, const ChaosAction& action) {
    switch (action.fault) {
      case Fault::kKillCoordinator:
        return KillCoordinator(status, action).has_value();
      case Fault::kKillReplay: {
        const auto killed = KillCoordinator(status, action);
        if (killed) KillSuccessor(status, *killed, action.successor_age);
        return killed.has_value();
      }
      case Fault::kKillAll:
        return KillAll(status, action);
      default:
        return BreakWorker(status, action);
    }
  }

  absl::StatusOr<bool> BreakWorker(const RunStatus& status, const ChaosAction& action) {
    const std::vector<Target> targets = Targets(status);
    if (targets.empty()) return false;
    const Target& target = targets[MemberIndex(action.pick, static_cast<uint32_t>(targets.size()))];
    const std::string who = absl::StrFormat("rank %d", target.rank);
    if (action.fault == Fault::kPartition) {
      RM_ASSIGN_OR_RETURN(const NetworkCut cut, NetworkCut::Start(target.process.pid()));
      Tell(status, FaultName(action.fault), who, target.process.pid());
      Wait(spec_.cut_for);
      return true;
    }
    const bool hang = action.fault == Fault::kHang;
    if (!target.process.Signal(hang ? SIGSTOP : SIGKILL)) return false;
    Tell(status, FaultName(action.fault), who, target.process.pid());
    if (hang) {
      Wait(spec_.hang_for);
      target.process.Signal(SIGCONT);
    }
    return true;
  }

  std::optional<HostProcess> KillCoordinator(const RunStatus& status, const ChaosAction& action) {
    auto coordinator = Coordinator(status);
    if (!coordinator || !coordinator->Signal(SIGKILL)) return std::nullopt;
    Tell(status, FaultName(action.fault), "coordinator", coordinator->pid());
    return coordinator;
  }

  void KillSuccessor(const RunStatus& status, const HostProcess& killed, absl::Duration age) {
    const absl::Time deadline = absl::Now() + kSuccessorTime;
    while (!over() && absl::Now() < deadline) {
      const auto successor = HostProcess::FindChild(killed.parent(), kCoordinatorProgram);
      // A killed process can be seen a little longer.
      if (successor && successor->pid() != killed.pid()) {
        Wait(age);
        if (successor->Signal(SIGKILL)) {
          Tell(status, absl::StrFormat("kill-replay, %s old", absl::FormatDuration(age)),
               "coordinator", successor->pid());
        }
        return;
      }
      Wait(kLookEvery);
    }
    spdlog::warn("the coordinator was not started again within {}: no second kill",
                 absl::FormatDuration(kSuccessorTime));
  }

  bool KillAll(const RunStatus& status, const ChaosAction& action) {
    const auto coordinator = Coordinator(status);
    const std::vector<Target> targets = Targets(status);
    if (!coordinator || targets.empty()) return false;
    coordinator->Signal(SIGKILL);
    for (const Target& target : targets) target.process.Signal(SIGKILL);
    Tell(status, FaultName(action.fault), "coordinator", coordinator->pid());
    for (const Target& target : targets) {
      Tell(status, FaultName(action.fault), absl::StrFormat("rank %d", target.rank),
           target.process.pid());
    }
    return true;
  }

  std::vector<Target> Targets(const RunStatus& status) const {
    std::vector<Target> targets;
    for (int rank = 0; rank < status.members_size(); ++rank) {
      const Member& member = status.members(rank);
      if (member.host() != host_) continue;
      auto process = HostProcess::Find(member.pid(), kWorkerProgram);
      if (process) targets.push_back({*std::move(process), rank});
    }
    return targets;
  }

  std::optional<HostProcess> Coordinator(const RunStatus& status) const {
    if (status.coordinator_host() != host_) return std::nullopt;
    return HostProcess::Find(status.coordinator_pid(), kCoordinatorProgram);
  }

  void Tell(const RunStatus& status, const std::string& what, const std::string& who, pid_t pid) {
    spdlog::info("action {} at {:.3f} s: {}: {}, pid {}, generation {}", done_ + 1,
                 absl::ToDoubleSeconds(absl::Now() - start_), what, who, pid, status.generation());
  }

  const std::string coordinator_;
  const ChaosSpec spec_;
  const std::vector<ChaosAction> plan_;
  const std::string host_ = HostName();
  const absl::Time start_ = absl::Now();
  StopSignals signals_;
  std::unique_ptr<Training::Stub> stub_;
  size_t done_ = 0;
  std::string why_over_;  // empty while it goes on
  int stop_signal_ = 0;
};

absl::StatusOr<int> RunChaos(const Settings& settings) {
  const absl::StatusOr<ChaosSpec> parsed = ParseChaosSpec(settings.chaos);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--spec: ", std::string(parsed.status().message())));
  }
  const ChaosSpec& spec = *parsed;
  RM_ASSIGN_OR_RETURN(StopSignals signals, StopSignals::Create());
  const std::vector<ChaosAction> plan = PlanChaos(spec, settings.seed);
  for (const ChaosSpec::Count& count : spec.counts) {
    // Tried on this program itself: better told now than in the middle of the run.
    if (count.fault == Fault::kPartition) RM_RETURN_IF_ERROR(NetworkCut::Start(getpid()).status());
  }
  spdlog::info("{} actions; '{}' with --seed {} are always these:", plan.size(), settings.chaos,
               settings.seed);
  for (const std::string& line : PlanLines(plan)) spdlog::info("{}", line);
  return Chaos(settings.coordinator, spec, plan, std::move(signals)).Run();
}

}  // namespace

int RunChaosCommand(const Settings& settings) {
  DieWithParent(SIGTERM);
  const absl::StatusOr<int> code = RunChaos(settings);
  if (code.ok()) return *code;
  LogError(code.status());
  return absl::IsInvalidArgument(code.status()) ? 2 : 1;
}

}  // namespace ringmaster
