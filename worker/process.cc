#include "worker/process.h"

#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/credentials.h"
#include "common/identity.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "worker/data_file.h"
#include "worker/device.h"
#include "worker/fault_backend.h"
#include "worker/key_value_client.h"
#include "worker/local_address.h"
#include "worker/rendezvous.h"
#include "worker/reporter.h"
#include "worker/retry.h"
#include "worker/session.h"
#include "worker/state_client.h"
#include "worker/stop_watcher.h"
#include "worker/trainer.h"

namespace ringmaster {
namespace {

constexpr absl::Duration kWelcomeTimeout = absl::Seconds(10);
constexpr absl::Duration kEndTimeout = absl::Seconds(60);
// After a failure: how long the coordinator has to say what happened.
constexpr absl::Duration kVerdictTimeout = absl::Seconds(5);

TrainPosition FromProto(const Position& position) {
  return {position.epoch(), position.step(), static_cast<TrainPosition::Phase>(position.phase())};
}

ModelSpec ModelOf(const TrainingConfig& config) {
  return ModelSpec{{config.layers().begin(), config.layers().end()}};
}

absl::StatusOr<OptimizerSpec> OptimizerOf(const TrainingConfig& config) {
  OptimizerSpec optimizer;
  switch (config.optimizer()) {
    case ADAM:
      optimizer.kind = OptimizerSpec::Kind::kAdam;
      break;
    case SGD:
      optimizer.kind = OptimizerSpec::Kind::kSgd;
      break;
    default:
      return absl::UnimplementedError(absl::StrCat("this worker does not know the optimizer ",
                                                   static_cast<int>(config.optimizer())));
  }
  optimizer.learning_rate = config.learning_rate();
  optimizer.beta1 = config.beta1();
  optimizer.beta2 = config.beta2();
  optimizer.epsilon = config.epsilon();
  return optimizer;
}

class RankProcess {
 public:
  RankProcess(const Settings& settings, StopWatcher* stop) : settings_(settings), stop_(stop) {}

  int Run() {
    if (const absl::Status status = Prepare(); !status.ok()) {
      LogError(status);
      return absl::IsInvalidArgument(status) ? 2 : 1;
    }
    absl::Status status = Join();
    if (status.ok()) status = Train();
    if (status.ok()) status = Finish();
    return Conclude(status);
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
    return absl::OkStatus();
  }

  Hello MakeHello() const {
    Hello hello;
    hello.set_incarnation(incarnation_);
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
    hello.set_listen_address(listen_address_);
    return hello;
  }

  absl::Status Join() {
    const auto channel = MakeChannel(settings_.coordinator);
    training_ = Training::NewStub(channel);
    key_value_ = KeyValue::NewStub(channel);
    RM_RETURN_IF_ERROR(RetryUntil(settings_.join_timeout,
                                  "reach the coordinator at " + settings_.coordinator, incarnation_,
                                  RetryClock::Real(), [this] { return TryJoin(); }));
    const TrainingConfig& config = session_->welcome().config();
    if (config.data_digest() != data_digest_ ||
        config.num_train_samples() != dataset_.train.num_samples ||
        config.num_test_samples() != dataset_.test.num_samples) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the run trains on data set ", config.data_digest(), " (", config.num_train_samples(),
          " + ", config.num_test_samples(), " samples), this process has ", data_digest_, " (",
          dataset_.train.num_samples, " + ", dataset_.test.num_samples, ")"));
    }
    ProcessNote* note = notes_ ? &(*notes_)[settings_.local_rank] : nullptr;
    reporter_ = std::make_unique<Reporter>(session_.get(), training_.get(), note);
    return CreateBackend(config);
  }

  absl::Status TryJoin() {
    RM_ASSIGN_OR_RETURN(listen_address_, LocalAddressTowards(settings_.coordinator));
    RM_ASSIGN_OR_RETURN(session_,
                        Session::Open(training_.get(), run_id_, MakeHello(), kWelcomeTimeout));
    return absl::OkStatus();
  }

  absl::Status CreateBackend(const TrainingConfig& config) {
    BackendOptions options;
    options.model = ModelOf(config);
    RM_ASSIGN_OR_RETURN(options.optimizer, OptimizerOf(config));
    options.plan = {config.seed(), config.num_train_samples(), config.global_batch(),
                    SliceGranularity(config.reproducible())};
    options.reproducible = config.reproducible();
    RM_ASSIGN_OR_RETURN(auto backend, MakeBackend(device_, options, dataset_));
    const char* fault = std::getenv("RINGMASTER_FAULT");
    RM_ASSIGN_OR_RETURN(backend_, InjectFault(fault == nullptr ? "" : fault, std::move(backend)));
    plan_ = options.plan;
    model_ = options.model;
    spdlog::debug("computing with {}", backend_->description());
    return absl::OkStatus();
  }

  absl::StatusOr<TrainState> StartingState(const Assigned& assigned) {
    if (assigned.assignment.state_digest().empty()) {
      return InitialState(model_, session_->welcome().config().seed());
    }
    return GetState(training_.get(), session_->run_id(), assigned.generation,
                    model_.num_parameters());
  }

  // Others cannot reach what listens on loopback.
  absl::Status CheckReachable(const Assignment& assignment) const {
    if (!IsLoopback(listen_address_ + ":0") && listen_address_ != "::1") return absl::OkStatus();
    for (const Member& member : assignment.members()) {
      if (member.host() != HostName()) {
        return absl::FailedPreconditionError(
            absl::StrCat("this process joined over loopback (", settings_.coordinator, "), where ",
                         member.host(),
                         " cannot reach it. Start the worker here with an address of this host "
                         "that the others reach too"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Train() {
    RM_ASSIGN_OR_RETURN(const Assigned assigned, session_->WaitForAssignment());
    const Assignment& assignment = assigned.assignment;
    rank_ = static_cast<int>(assignment.rank());
    const int world_size = static_cast<int>(assignment.world_size());
    reporter_->SetPlace(assigned);
    spdlog::debug("rank {} of {} in generation {}", rank_, world_size, assigned.generation);
    RM_RETURN_IF_ERROR(CheckReachable(assignment));
    RM_RETURN_IF_ERROR(backend_->SetWorld(rank_, world_size));
    RM_ASSIGN_OR_RETURN(const TrainState state, StartingState(assigned));
    RM_RETURN_IF_ERROR(backend_->SetState(state));
    KeyValueClient store(key_value_.get(), session_->run_id(), assigned.generation);
    RendezvousOptions rendezvous;
    rendezvous.rank = rank_;
    rendezvous.world_size = world_size;
    rendezvous.timeout = absl::Milliseconds(assignment.communicator_timeout_ms());
    rendezvous.listen_address = listen_address_;
    rendezvous.device = &device_;
    rendezvous.backend = backend_.get();
    rendezvous.store = &store;
    RM_ASSIGN_OR_RETURN(communicator_, Rendezvous(rendezvous));
    return RunTrainer(FromProto(assignment.position()));
  }

  absl::Status RunTrainer(TrainPosition from) {
    const TrainingConfig& config = session_->welcome().config();
    TrainerOptions options;
    options.plan = plan_;
    options.epochs = config.epochs();
    options.num_test_samples = config.num_test_samples();
    Trainer trainer(options, backend_.get(), communicator_.get(), reporter_.get());
    reporter_->Attach(&trainer);
    session_->SetInterrupt([&trainer] { trainer.Abort(); });
    stop_->SetAction([&trainer] { trainer.Abort(); });
    const absl::Status status = trainer.Run(from);
    stop_->SetAction(nullptr);
    session_->SetInterrupt(nullptr);
    reporter_->Attach(nullptr);
    return status;
  }

  absl::Status Finish() {
    RM_RETURN_IF_ERROR(reporter_->Flush(kEndTimeout));
    RM_ASSIGN_OR_RETURN(const TrainState state, backend_->GetState());
    WorkerMessage message;
    message.mutable_finished()->set_state_digest(StateSha256(state));
    session_->Send(std::move(message));
    RM_ASSIGN_OR_RETURN(const EndOfRun end, session_->WaitForEnd(kEndTimeout));
    return end.exit_code() == 0 ? absl::OkStatus() : absl::AbortedError(end.reason());
  }

  // Tells the coordinator, waits for its verdict, and settles the exit code.
  int Conclude(const absl::Status& status) {
    if (const int signal = stop_->signal(); signal != 0) {
      const std::string message = "stopped by " + SignalName(signal);
      Tell(absl::CancelledError(message), /*consequence=*/false);
      spdlog::info("{}", message);
      return ExitCodeForSignal(signal);
    }
    if (status.ok()) return 0;
    if (session_ == nullptr) {
      LogError(status);
      return 1;
    }
    if (const absl::Status health = session_->health(); !health.ok()) return RunIsOver(health);
    // A peer that is gone is another's failure.
    const bool consequence = absl::IsUnavailable(status);
    Tell(status, consequence);
    if (!consequence) LogError(status);
    const auto end = session_->WaitForEnd(kVerdictTimeout);
    if (!consequence) return 1;
    if (!end.ok()) LogError(status);
    return end.ok() ? RunIsOver(session_->health()) : 1;
  }

  void Tell(const absl::Status& status, bool consequence) {
    if (session_ == nullptr) return;
    WorkerMessage message;
    Failure* failure = message.mutable_failure();
    failure->set_code(static_cast<int>(status.code()));
    failure->set_message(std::string(status.message()));
    failure->set_consequence(consequence);
    session_->Send(std::move(message));
  }

  int RunIsOver(const absl::Status& health) {
    if (absl::IsAborted(health)) {
      spdlog::log(settings_.local_rank == 0 ? spdlog::level::warn : spdlog::level::debug,
                  "the run is over: {}", std::string(health.message()));
      return kExitConsequence;
    }
    spdlog::error("lost the coordinator at {}: {}", settings_.coordinator,
                  std::string(health.message()));
    return 1;
  }

  const Settings settings_;
  StopWatcher* const stop_;
  const uint64_t incarnation_ = RandomId();
  std::string run_id_;
  std::string data_digest_;
  std::string listen_address_;
  Dataset dataset_;
  Device device_;
  std::optional<ProcessNotes> notes_;
  SamplingPlan plan_;
  ModelSpec model_;
  int rank_ = -1;
  // Destroyed from the last to the first: each borrows from those above it.
  std::unique_ptr<Training::Stub> training_;
  std::unique_ptr<KeyValue::Stub> key_value_;
  std::unique_ptr<Session> session_;
  std::unique_ptr<Reporter> reporter_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Communicator> communicator_;
};

}  // namespace

int RunProcess(const Settings& settings) {
  auto stop = StopWatcher::Start();
  if (!stop.ok()) {
    LogError(stop.status());
    return 1;
  }
  return RankProcess(settings, stop->get()).Run();
}

}  // namespace ringmaster
