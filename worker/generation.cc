#include "worker/generation.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/credentials.h"
#include "common/identity.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "worker/key_value_client.h"
#include "worker/position_proto.h"
#include "worker/rendezvous.h"
#include "worker/state_client.h"

namespace ringmaster {
namespace {

// What a device may take to give up an aborted step.
constexpr absl::Duration kAbortTimeout = absl::Seconds(5);

// An rpc of an old generation is refused: this one is over, the news is on its way.
absl::Status AsOver(const absl::Status& status) {
  return absl::IsFailedPrecondition(status) ? absl::AbortedError(status.message()) : status;
}

}  // namespace

Generation::Generation(const Process& process, Assigned assigned)
    : process_(process),
      assigned_(std::move(assigned)),
      assignment_(assigned_.assignment),
      timeline_(process.plan->timeline()),
      timeout_(absl::Milliseconds(assignment_.communicator_timeout_ms())) {}

absl::Status Generation::Run() {
  spdlog::debug("rank {} of {} in generation {}", assignment_.rank(), assignment_.world_size(),
                assigned_.generation);
  absl::Status status = TakePlace();
  // Whatever the interrupted call made of it.
  if (!status.ok() && interrupt_.triggered()) {
    MutexLock lock(&mutex_);
    status = absl::AbortedError(over_reason_);
  }
  if (status.ok()) status = Train();
  communicator_.reset();
  return status;
}

void Generation::Leave() {
  MutexLock lock(&mutex_);
  if (trainer_ != nullptr) return trainer_->RaiseFlag(tail::kFlagRegroup);
  over_reason_ = "told to stop";
  interrupt_.Trigger();
}

void Generation::OnOver(const std::string& reason) {
  process_.hang->Arm(kAbortTimeout);
  {
    MutexLock lock(&mutex_);
    over_reason_ = reason;
  }
  interrupt_.Trigger();
}

void Generation::OnRegroup(const std::string& reason) {
  spdlog::debug("asking all ranks to stop: {}", reason);
  MutexLock lock(&mutex_);
  regroup_ = true;
  if (trainer_ != nullptr) trainer_->RaiseFlag(tail::kFlagRegroup);
}

absl::Status Generation::TakePlace() {
  RM_RETURN_IF_ERROR(CheckReachable());
  RM_ASSIGN_OR_RETURN(position_, IndexOf(timeline_, FromProto(assignment_.position())));
  RM_RETURN_IF_ERROR(process_.backend->SetWorld(static_cast<int>(assignment_.rank()),
                                                static_cast<int>(assignment_.world_size())));
  RM_RETURN_IF_ERROR(TakeState());
  RM_RETURN_IF_ERROR(process_.reporter->Begin(assigned_, position_, own_state_));
  if (assignment_.hand_in_state()) RM_RETURN_IF_ERROR(HandInState());
  return Connect();
}

// Others cannot reach what listens on loopback.
absl::Status Generation::CheckReachable() const {
  const std::string& address = process_.listen_address;
  if (!IsLoopback(address + ":0") && address != "::1") return absl::OkStatus();
  for (const Member& member : assignment_.members()) {
    if (member.host() != HostName()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "this process joined over loopback (its address is ", address, "), where ", member.host(),
          " cannot reach it. Start the worker here with an address of this host "
          "that the others reach too"));
    }
  }
  return absl::OkStatus();
}

absl::Status Generation::TakeState() {
  RM_ASSIGN_OR_RETURN(TrainState state, StartingState());
  RM_RETURN_IF_ERROR(CheckUpdates(state, position_));
  RM_RETURN_IF_ERROR(process_.backend->SetState(state));
  process_.held->Set(assigned_.generation, position_, std::move(state));
  return absl::OkStatus();
}

absl::StatusOr<TrainState> Generation::StartingState() {
  const std::string& digest = assignment_.state_digest();
  if (digest.empty()) return InitialState(process_.plan->model, process_.plan->sampling.seed);
  const std::optional<Held> held = process_.held->Get();
  own_state_ = held && StateSha256(*held->state) == digest;
  if (own_state_) return *held->state;
  spdlog::debug("taking the state at record {} from the coordinator", position_);
  auto state = GetState(process_.training, process_.run_id, assigned_.generation, digest,
                        process_.plan->model.num_parameters(), timeout_, &interrupt_);
  if (!state.ok()) return AsOver(state.status());
  return state;
}

absl::Status Generation::HandInState() {
  const auto held = process_.held->Get();
  return AsOver(PutState(process_.training, process_.run_id, assigned_.generation,
                         assignment_.position(), *held->state, timeout_, &interrupt_));
}

absl::Status Generation::Connect() {
  KeyValueClient store(process_.key_value, process_.run_id, assigned_.generation, &interrupt_);
  RendezvousOptions options;
  options.rank = static_cast<int>(assignment_.rank());
  options.world_size = static_cast<int>(assignment_.world_size());
  options.timeout = timeout_;
  options.listen_address = process_.listen_address;
  options.device = process_.device;
  options.backend = process_.backend;
  options.store = &store;
  options.interrupt = &interrupt_;
  auto communicator = Rendezvous(options);
  if (!communicator.ok()) return AsOver(communicator.status());
  communicator_ = *std::move(communicator);
  return absl::OkStatus();
}

absl::Status Generation::Train() {
  TrainerOptions options;
  options.plan = process_.plan->sampling;
  options.epochs = process_.plan->epochs;
  options.num_test_samples = process_.plan->num_test_samples;
  Trainer trainer(options, process_.backend, communicator_.get(), process_.reporter);
  absl::Status status;
  {
    const Interrupt::Scope scope(&interrupt_, [&trainer] { trainer.Abort(); });
    SetTrainer(&trainer);
    status = trainer.Run(PositionAt(timeline_, position_));
    SetTrainer(nullptr);
  }
  RM_RETURN_IF_ERROR(Settle(trainer.position()));
  return status;
}

absl::Status Generation::Settle(const TrainPosition& position) {
  RM_ASSIGN_OR_RETURN(const uint64_t index, IndexOf(timeline_, position));
  RM_ASSIGN_OR_RETURN(TrainState state, process_.backend->GetState());
  RM_RETURN_IF_ERROR(CheckUpdates(state, index));
  process_.held->Set(assigned_.generation, index, std::move(state));
  return absl::OkStatus();
}

absl::Status Generation::CheckUpdates(const TrainState& state, uint64_t position) const {
  if (state.step == timeline_.UpdatesBefore(position)) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(
      "rank ", assignment_.rank(), " of ", assignment_.world_size(), ": the state at record ",
      position, " has ", state.step, " updates, wanted ", timeline_.UpdatesBefore(position)));
}

void Generation::SetTrainer(Trainer* trainer) {
  MutexLock lock(&mutex_);
  trainer_ = trainer;
  if (trainer != nullptr && regroup_) trainer->RaiseFlag(tail::kFlagRegroup);
}

}  // namespace ringmaster
