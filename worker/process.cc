#include "worker/process.h"

#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/credentials.h"
#include "common/identity.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "worker/coordinator_link.h"
#include "worker/data_file.h"
#include "worker/device.h"
#include "worker/fault_backend.h"
#include "worker/generation.h"
#include "worker/held_state.h"
#include "worker/local_address.h"
#include "worker/position_proto.h"
#include "worker/reporter.h"
#include "worker/run_plan.h"
#include "worker/state_client.h"
#include "worker/state_vault.h"
#include "worker/stop_watcher.h"
#include "worker/unreachable.h"
#include "worker/watchdog.h"

namespace ringmaster {
namespace {

// Told to stop: for everything that comes after the last step.
constexpr absl::Duration kHandOverTime = absl::Milliseconds(700);
constexpr absl::Duration kLeaveDeadline = absl::Seconds(1);
constexpr absl::Duration kCloseTime = absl::Milliseconds(200);

void ExitNow(int code) {
  spdlog::default_logger()->flush();
  _exit(code);
}

// What another generation can mend. Everything else is this process's own trouble.
bool IsForTheCoordinator(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kUnavailable:
      return true;
    default:
      return false;
  }
}

// Whether it was told to, or broke away by itself.
bool WasTold(const absl::Status& status) {
  return status.ok() || absl::IsAborted(status) || absl::IsCancelled(status);
}

int ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 0;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return kExitMisconfigured;
    default:
      return kExitFailed;
  }
}

class RankProcess {
 public:
  RankProcess(const Settings& settings, StopWatcher* stop)
      : settings_(settings),
        stop_(stop),
        hang_([this] { GiveUpDevice(); }),
        leave_([this] { ExitNow(ExitCodeForSignal(stop_->signal())); }) {}

  int Run() {
    if (const absl::Status status = Prepare(); !status.ok()) {
      LogError(status);
      return absl::IsInvalidArgument(status) ? kExitMisconfigured : kExitFailed;
    }
    Dial();
    stop_->SetAction([this] { OnStop(); });
    const std::optional<Welcome> welcome = link_->AwaitWelcome();
    int code = 0;
    if (!welcome) {
      code = Conclude();
    } else if (const absl::Status status = SetUp(*welcome); !status.ok()) {
      code = Fail(status);
    } else {
      code = Live();
    }
    stop_->SetAction(nullptr);
    return code;
  }

 private:
  // Everything that needs no coordinator.
  absl::Status Prepare() {
    RM_ASSIGN_OR_RETURN(DataFile data, ReadDataFile(settings_.data_fd));
    run_id_ = data.run_id;
    data_digest_ = data.digest;
    RM_ASSIGN_OR_RETURN(dataset_, DecodeDataset(data.files));
    RM_ASSIGN_OR_RETURN(device_, ChooseDevice(settings_));
    if (settings_.note_fd >= 0) {
      RM_ASSIGN_OR_RETURN(ProcessNotes notes,
                          ProcessNotes::Open(settings_.note_fd, settings_.local_world_size));
      notes_.emplace(std::move(notes));
    }
    if (settings_.vault_fd >= 0) {
      RM_ASSIGN_OR_RETURN(StateVault vault, StateVault::Open(settings_.vault_fd));
      vault_.emplace(std::move(vault));
    }
    return absl::OkStatus();
  }

  void Dial() {
    const auto channel = MakeChannel(settings_.coordinator);
    training_ = Training::NewStub(channel);
    key_value_ = KeyValue::NewStub(channel);
    CoordinatorLink::Options options;
    options.address = settings_.coordinator;
    options.run_id = run_id_;
    options.hello = [this] { return MakeHello(); };
    options.give_up_after = settings_.join_timeout;
    link_ = std::make_unique<CoordinatorLink>(training_.get(), std::move(options));
  }

  // The address may be another one when the network has come back.
  absl::StatusOr<Hello> MakeHello() {
    RM_ASSIGN_OR_RETURN(const std::string address, LocalAddressTowards(settings_.coordinator));
    Hello hello;
    hello.set_node_id(settings_.node_id.empty() ? absl::StrCat(HostName(), "-", getpid())
                                                : settings_.node_id);
    hello.set_host(HostName());
    hello.set_pid(getpid());
    hello.set_local_rank(static_cast<uint32_t>(settings_.local_rank));
    hello.set_local_world_size(static_cast<uint32_t>(settings_.local_world_size));
    hello.set_device(device_.cuda != nullptr ? CUDA : CPU);
    hello.set_device_description(device_.description);
    hello.set_version(ProgramVersion());
    hello.set_data_digest(data_digest_);
    hello.set_listen_address(address);
    MutexLock lock(&mutex_);
    listen_address_ = address;
    return hello;
  }

  absl::Status SetUp(const Welcome& welcome) {
    const TrainingConfig& config = welcome.config();
    RM_RETURN_IF_ERROR(CheckDataset(config, dataset_, data_digest_));
    RM_ASSIGN_OR_RETURN(plan_, PlanFrom(config));
    RM_RETURN_IF_ERROR(CreateBackend());
    Reporter::Options options;
    options.link = link_.get();
    options.stub = training_.get();
    options.held = &held_;
    options.note = notes_ ? &(*notes_)[settings_.local_rank] : nullptr;
    options.timeline = plan_.timeline();
    options.heartbeat_interval =
        absl::Milliseconds(std::max<uint32_t>(welcome.heartbeat_interval_ms(), 10));
    options.checkpoint_every_steps = welcome.checkpoint_every_steps();
    options.checkpoint_every = absl::Seconds(welcome.checkpoint_every_seconds());
    auto reporter = std::make_unique<Reporter>(options);
    TakeFromVault(reporter.get());
    MutexLock lock(&mutex_);
    reporter_ = std::move(reporter);
    return absl::OkStatus();
  }

  absl::Status CreateBackend() {
    BackendOptions options;
    options.model = plan_.model;
    options.optimizer = plan_.optimizer;
    options.plan = plan_.sampling;
    options.reproducible = plan_.reproducible;
    RM_ASSIGN_OR_RETURN(auto backend, MakeBackend(device_, options, dataset_));
    const char* fault = std::getenv("RINGMASTER_FAULT");
    RM_ASSIGN_OR_RETURN(backend_, InjectFault(fault == nullptr ? "" : fault, std::move(backend)));
    spdlog::debug("computing with {}", backend_->description());
    return absl::OkStatus();
  }

  // What a process before this one left when its device hung. Without it this process stands with
  // nothing, which is no loss but time.
  void TakeFromVault(Reporter* reporter) {
    if (!vault_) return;
    auto loaded = vault_->Load();
    vault_->Clear();
    if (!loaded.ok()) {
      spdlog::warn("what the last process left is not used: {}",
                   std::string(loaded.status().message()));
      return;
    }
    if (!*loaded || (*loaded)->state.parameters.size() != plan_.model.num_parameters()) return;
    VaultedState& left = **loaded;
    spdlog::info("going on with what the last process left: the state at record {}", left.position);
    reporter->RestoreRecords(left.records, left.position);
    held_.Set(left.generation, left.position, std::move(left.state));
  }

  // From generation to generation. Returns the exit code.
  int Live() {
    absl::Status last;
    for (;;) {
      const std::optional<Assigned> assigned = Stand(last);
      if (!assigned) return Conclude();
      last = RunGeneration(*assigned);
      if (absl::IsCancelled(last)) HandOver(absl::Now() + kHandOverTime);
      if (stop_->signal() != 0) return Leave();
      if (!last.ok() && !IsForTheCoordinator(last)) return Fail(last);
      // The coordinator names the cause, if there is one.
      const auto level = link_->state().connected ? spdlog::level::debug : spdlog::level::warn;
      if (!WasTold(last)) spdlog::log(level, "{}", std::string(last.message()));
      if (last.ok() && !Finish()) return Conclude();
    }
  }

  // Tells over each connection what this process holds, until there is a place for it. Nothing: the
  // link has ended.
  std::optional<Assigned> Stand(const absl::Status& last) {
    reporter_->End();
    const WorkerMessage standing = MakeStanding(last);
    uint64_t told = 0;
    for (;;) {
      switch (link_->AwaitPlace(told)) {
        case CoordinatorLink::Event::kConnected:
          told = link_->state().connection;
          link_->Send(standing, told);
          break;
        case CoordinatorLink::Event::kAssigned:
          return link_->TakeAssignment();
        default:
          return std::nullopt;
      }
    }
  }

  WorkerMessage MakeStanding(const absl::Status& last) const {
    WorkerMessage message;
    Standing* standing = message.mutable_standing();
    // At position 0 it is the initial state, which everybody has.
    if (const auto held = held_.Get(); held && held->position > 0) {
      standing->set_generation(held->generation);
      *standing->mutable_position() = ToProto(PositionAt(plan_.timeline(), held->position));
      standing->set_state_digest(StateSha256(*held->state));
      standing->set_records_from(reporter_->oldest_record());
    }
    if (WasTold(last)) return message;
    standing->set_reason(std::string(last.message()));
    for (const uint32_t rank : Unreachable(last)) standing->add_unreachable(rank);
    return message;
  }

  absl::Status RunGeneration(const Assigned& assigned) {
    Generation::Process process;
    process.plan = &plan_;
    process.device = &device_;
    process.training = training_.get();
    process.key_value = key_value_.get();
    process.backend = backend_.get();
    process.reporter = reporter_.get();
    process.held = &held_;
    process.hang = &hang_;
    process.run_id = link_->run_id();
    assigned_ = assigned;
    {
      MutexLock lock(&mutex_);
      process.listen_address = listen_address_;
    }
    Generation generation(process, assigned);
    SetGeneration(&generation);
    link_->SetListener(&generation);
    const absl::Status status = generation.Run();
    link_->SetListener(nullptr);
    SetGeneration(nullptr);
    hang_.Disarm();
    return status;
  }

  void SetGeneration(Generation* generation) {
    {
      MutexLock lock(&mutex_);
      generation_ = generation;
    }
    // Told before, the stop watcher has found no generation.
    if (generation != nullptr && stop_->signal() != 0) generation->Leave();
  }

  // Tells over each connection that the work is done, with the records and the final state before
  // it, until the generation is over (true) or the link has ended (false).
  bool Finish() {
    const auto held = held_.Get();
    WorkerMessage finished;
    finished.mutable_finished()->set_state_digest(StateSha256(*held->state));
    uint64_t told = 0;
    for (;;) {
      switch (link_->AwaitOutcome(told)) {
        case CoordinatorLink::Event::kConnected:
          told = link_->state().connection;
          if (HandInEnd(*held, told)) link_->Send(finished, told);
          break;
        case CoordinatorLink::Event::kOver:
          return true;
        default:
          return false;
      }
    }
  }

  // False: that connection broke, or nothing is to be finished any more.
  bool HandInEnd(const Held& held, uint64_t connection) {
    if (assigned_.assignment.rank() != 0) return true;
    const auto is_over = [&] {
      const CoordinatorLink::State state = link_->state();
      return state.over || !state.connected || state.connection != connection || link_->end();
    };
    // The records go first, but nobody waits for them to be safe: a coordinator whose journal
    // cannot be written never says so, and needs the state all the same.
    reporter_->Flush(connection, absl::Now());
    if (is_over()) return false;
    reporter_->states().Add({held.position, /*is_epoch_end=*/true, held.state});
    return reporter_->states().AwaitIdle(is_over);
  }

  // The stop watcher's thread: another one may be anywhere, but not for longer than the deadline.
  void OnStop() {
    link_->Stop();
    MutexLock lock(&mutex_);
    // The step in hand does not carry the flag, the next one does.
    const absl::Duration step =
        reporter_ == nullptr ? absl::ZeroDuration() : reporter_->longest_step();
    leave_.Arm(kLeaveDeadline + 2 * step);
    if (generation_ != nullptr) generation_->Leave();
  }

  // All ranks have stopped at an agreed step: what those to come, or a later run, go on from. As
  // far as it goes: the others hold the same.
  void HandOver(absl::Time deadline) {
    const auto held = held_.Get();
    if (assigned_.assignment.rank() != 0 || !held) return;
    if (!reporter_->Flush(link_->state().connection, deadline)) return;
    PutState(training_.get(), link_->run_id(), assigned_.generation,
             ToProto(PositionAt(plan_.timeline(), held->position)), *held->state,
             std::max(deadline - absl::Now(), absl::ZeroDuration()), nullptr)
        .IgnoreError();
  }

  // In good order.
  int Leave() {
    const std::string message = "stopped by " + SignalName(stop_->signal());
    const uint64_t connection = link_->state().connection;
    if (reporter_ != nullptr) reporter_->End();
    WorkerMessage leaving;
    leaving.mutable_leaving()->set_reason(message);
    link_->Send(std::move(leaving), connection);
    link_->Close(kCloseTime);
    spdlog::info("{}", message);
    return ExitCodeForSignal(stop_->signal());
  }

  // This process cannot go on.
  int Fail(const absl::Status& status) {
    LogError(status);
    WorkerMessage message;
    Failure* failure = message.mutable_failure();
    failure->set_code(static_cast<int>(status.code()));
    failure->set_message(std::string(status.message()));
    link_->Send(std::move(message), link_->state().connection);
    link_->Close(absl::Seconds(2));
    return ExitCodeOf(status);
  }

  // The link has ended.
  int Conclude() {
    const LinkEnd end = *link_->end();
    switch (end.kind) {
      case LinkEnd::Kind::kEndOfRun:
        if (end.exit_code == 0) return 0;
        spdlog::log(settings_.local_rank == 0 ? spdlog::level::warn : spdlog::level::debug,
                    "the run is over: {}", std::string(end.status.message()));
        return kExitConsequence;
      case LinkEnd::Kind::kGaveUp:
        LogError(end.status);
        return kExitGaveUp;
      case LinkEnd::Kind::kRefused:
        LogError(end.status);
        return ExitCodeOf(end.status);
      case LinkEnd::Kind::kStopped:
        break;
    }
    return Leave();
  }

  // The watchdog's thread: the device does not give an aborted step up, so the thread that waits
  // for it cannot be helped. A new process can go on with the last state that is in host memory.
  void GiveUpDevice() {
    spdlog::error(
        "the device has not given up an aborted step in time: this process ends and another takes "
        "its place");
    if (const auto held = held_.Get(); held && vault_) {
      const absl::Status status = vault_->Save({held->generation, held->position, *held->state,
                                                reporter_->SerializedRecords(held->position)});
      if (!status.ok()) LogError(status);
    }
    ExitNow(kExitRespawn);
  }

  const Settings settings_;
  StopWatcher* const stop_;
  std::string run_id_;
  std::string data_digest_;
  Dataset dataset_;
  Device device_;
  std::optional<ProcessNotes> notes_;
  std::optional<StateVault> vault_;
  RunPlan plan_;
  HeldState held_;
  Assigned assigned_;  // last

  Watchdog hang_;
  Watchdog leave_;

  Mutex mutex_;
  std::string listen_address_ ABSL_GUARDED_BY(mutex_);
  Generation* generation_ ABSL_GUARDED_BY(mutex_) = nullptr;

  // Destroyed from the last to the first: each borrows from those above it.
  std::unique_ptr<Training::Stub> training_;
  std::unique_ptr<KeyValue::Stub> key_value_;
  std::unique_ptr<CoordinatorLink> link_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Reporter> reporter_;
};

}  // namespace

int RunProcess(const Settings& settings) {
  auto stop = StopWatcher::Start();
  if (!stop.ok()) {
    LogError(stop.status());
    return kExitFailed;
  }
  return RankProcess(settings, stop->get()).Run();
}

}  // namespace ringmaster
