#include "coordinator/run.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/subprocess.h"
#include "spdlog/spdlog.h"

namespace ringmaster {
namespace {

// Refused sessions that are worth a warning; a stranger that keeps on knocking is not.
constexpr int kRefusalsShown = 20;

RunStatus::Phase StatusPhase(Membership::Phase phase) {
  return phase == Membership::Phase::kWaiting ? RunStatus::WAITING : RunStatus::TRAINING;
}

}  // namespace

Run::Run(RunOptions options, absl::Time now)
    : options_(std::move(options)),
      now_(now),
      membership_(options_.membership, now),
      audit_(options_.config) {
  report_.run_id = options_.run_id;
  report_.version = options_.membership.version;
  report_.started = now;
  report_.config = options_.config;
  report_.samples_expected = audit_.samples_expected();
  Publish();
}

void Run::Begin(std::unique_ptr<RunOutputs> outputs) {
  outputs_ = std::move(outputs);
  report_.run_dir = outputs_->run_dir();
  Publish();
}

std::optional<int> Run::Advance(absl::Time now) {
  now_ = now;
  for (const auto& letter : mailbox_.Take()) letter();
  if (!ending_) Decide();
  Publish();
  if (ending_ && (sessions_.empty() || now >= ending_->leave_at)) return ending_->exit_code;
  return std::nullopt;
}

void Run::Stop(int signal) {
  if (ending_) return;
  End(RunOutcome::kInterrupted, ExitCodeForSignal(signal),
      absl::StrCat("the coordinator was stopped by ", SignalName(signal)));
}

// ---------------------------------------------------------------- what is posted

void Run::OnMessage(PeerPtr peer, WorkerMessage message) {
  mailbox_.Post([this, peer = std::move(peer), message = std::move(message)] {
    HandleMessage(peer, message);
  });
}

void Run::OnClosed(PeerPtr peer) {
  mailbox_.Post([this, peer = std::move(peer)] { HandleClosed(peer); });
}

void Run::OnState(StoredStatePtr state, std::function<void(absl::Status)> reply) {
  mailbox_.Post(
      [this, state = std::move(state), reply = std::move(reply)] { reply(HandleState(state)); });
}

void Run::HandleMessage(const PeerPtr& peer, const WorkerMessage& message) {
  const auto found = sessions_.find(peer.get());
  if (found == sessions_.end()) return HandleHello(peer, message);
  const Session session = found->second;
  const absl::Status status = ending_ ? absl::OkStatus() : Handle(session, message);
  if (status.ok()) return peer->ReadNext();
  const std::string who = membership_.Contains(session.member)
                              ? membership_.Describe(session.member)
                              : "a former member";
  Refuse(peer, who, status);
  membership_.Lost(session.member, absl::StrCat("was put out: ", std::string(status.message())));
}

void Run::HandleHello(const PeerPtr& peer, const WorkerMessage& message) {
  const Hello& hello = message.hello();
  const std::string who = message.has_hello()
                              ? absl::StrCat("a process of host ", hello.host().substr(0, 64),
                                             " (pid ", hello.pid(), ")")
                              : "a stranger";
  absl::Status status = CheckRun(message.run_id());
  if (!message.has_hello()) status = absl::InvalidArgumentError("the first message is not a hello");
  if (status.ok() && ending_) status = absl::FailedPreconditionError("the run is over");
  if (status.ok()) status = membership_.Join(now_, last_member_ + 1, hello);
  if (!status.ok()) return Refuse(peer, who, status);
  sessions_[peer.get()] = {peer, ++last_member_};
  spdlog::debug("{} joined with {}", who, hello.device_description());
  CoordinatorMessage answer;
  Welcome* welcome = answer.mutable_welcome();
  welcome->set_coordinator_incarnation(options_.incarnation);
  *welcome->mutable_config() = options_.config;
  welcome->set_heartbeat_interval_ms(
      static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.heartbeat_interval)));
  Send(peer, std::move(answer));
  peer->ReadNext();
}

absl::Status Run::CheckEnvelope(const WorkerMessage& message) const {
  if (message.run_id() != options_.run_id) {
    return absl::FailedPreconditionError(absl::StrCat(
        "this is run ", options_.run_id, ", the message is of run ", message.run_id()));
  }
  if (message.has_hello()) return absl::FailedPreconditionError("a second hello");
  // What was sent before the assignment arrived.
  const bool before =
      message.generation() == 0 && (message.has_heartbeat() || message.has_failure());
  if (before || message.generation() == membership_.generation()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("a message of generation ",
                                                    message.generation(), "; the current one is ",
                                                    membership_.generation()));
}

absl::Status Run::Handle(const Session& session, const WorkerMessage& message) {
  RM_RETURN_IF_ERROR(CheckEnvelope(message));
  membership_.Heard(now_, session.member);
  switch (message.kind_case()) {
    case WorkerMessage::kHeartbeat:
      return absl::OkStatus();
    case WorkerMessage::kRecords:
      return HandleRecords(session, message.records());
    case WorkerMessage::kFinished:
      membership_.Finished(session.member, message.finished().state_digest());
      return absl::OkStatus();
    case WorkerMessage::kFailure:
      spdlog::debug("{} failed: {}", membership_.Describe(session.member),
                    message.failure().message());
      membership_.Failed(now_, session.member, message.failure());
      return absl::OkStatus();
    default:
      return absl::InvalidArgumentError("a message of a kind that does not exist");
  }
}

absl::Status Run::HandleRecords(const Session& session, const StepRecords& records) {
  if (membership_.RankOf(session.member) != 0u) {
    return absl::InvalidArgumentError("records come from rank 0 only");
  }
  for (const GlobalRecord& record : records.records()) {
    if (const absl::Status status = audit_.Add(record); !status.ok()) {
      End(RunOutcome::kFailed, 1,
          absl::StrCat("the audit failed: ", std::string(status.message())));
      return absl::OkStatus();
    }
    report_.history.Add(record);
    report_.samples_committed = audit_.samples_committed();
    if (outputs_ != nullptr) outputs_->Record(record, now_);
  }
  CoordinatorMessage answer;
  answer.mutable_ack()->set_records_received(audit_.records());
  Send(session.peer, std::move(answer));
  return absl::OkStatus();
}

void Run::HandleClosed(const PeerPtr& peer) {
  const auto found = sessions_.find(peer.get());
  if (found == sessions_.end()) return;
  membership_.Lost(found->second.member, "was lost: its stream broke without a word");
  sessions_.erase(found);
}

absl::Status Run::HandleState(const StoredStatePtr& state) {
  RM_RETURN_IF_ERROR(CheckGeneration(options_.run_id, state->generation));
  if (ending_) return absl::FailedPreconditionError("the run is over");
  const Position due = audit_.position();
  const Position& got = state->position;
  if (got.epoch() == 0 || got.epoch() != due.epoch() || got.step() != 0 || due.step() != 0 ||
      got.phase() != due.phase()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a state of epoch ", got.epoch(), ", step ", got.step(),
                     " came while the records are at epoch ", due.epoch(), ", step ", due.step()));
  }
  states_.Put(state);
  if (outputs_ != nullptr) outputs_->Weights(got.epoch() - 1, state->state, now_);
  return absl::OkStatus();
}

void Run::Refuse(const PeerPtr& peer, const std::string& who, const absl::Status& status) {
  spdlog::log(++refusals_ <= kRefusalsShown ? spdlog::level::warn : spdlog::level::debug,
              "refused {}: {}", who, std::string(status.message()));
  sessions_.erase(peer.get());
  peer->Close(status);
}

// ---------------------------------------------------------------- what is decided

void Run::Decide() {
  const Membership::Phase before = membership_.phase();
  const Membership::Phase phase = membership_.Decide(now_);
  if (phase == Membership::Phase::kWaiting) CloseLost();
  if (phase == Membership::Phase::kFailed) {
    return End(RunOutcome::kFailed, 1, membership_.reason());
  }
  if (membership_.reason() != std::exchange(logged_reason_, membership_.reason())) {
    spdlog::info("{}", membership_.reason());
  }
  if (before == Membership::Phase::kWaiting && phase == Membership::Phase::kTraining) {
    StartGeneration();
  }
  if (phase == Membership::Phase::kFinished) Conclude();
}

// Membership has dropped who fell silent while waiting.
void Run::CloseLost() {
  for (auto at = sessions_.begin(); at != sessions_.end();) {
    if (membership_.Contains(at->second.member)) {
      ++at;
      continue;
    }
    at->second.peer->Close(absl::UnavailableError("no heartbeat came: join again"));
    at = sessions_.erase(at);
  }
}

void Run::StartGeneration() {
  const std::vector<MemberId>& ranks = membership_.ranks();
  Assignment assignment;
  assignment.set_world_size(static_cast<uint32_t>(ranks.size()));
  *assignment.mutable_position() = audit_.position();
  assignment.set_device(membership_.hello(ranks.front()).device());
  assignment.set_communicator_timeout_ms(
      static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.communicator_timeout)));
  report_.members.clear();
  for (const MemberId id : ranks) {
    const Hello& hello = membership_.hello(id);
    Member member;
    member.set_incarnation(hello.incarnation());
    member.set_host(hello.host());
    member.set_pid(hello.pid());
    member.set_device_description(hello.device_description());
    *assignment.add_members() = member;
    report_.members.push_back(std::move(member));
  }
  report_.world_size = assignment.world_size();
  report_.generations = membership_.generation();
  report_.device = assignment.device();
  audit_.SetWorldSize(assignment.world_size());
  keys_.Begin(membership_.generation());
  Publish();  // before anybody can ask with the new number
  for (const auto& [key, session] : sessions_) {
    const auto rank = membership_.RankOf(session.member);
    if (!rank) continue;
    assignment.set_rank(*rank);
    CoordinatorMessage message;
    *message.mutable_assignment() = assignment;
    Send(session.peer, std::move(message));
  }
}

absl::Status Run::CheckResult() const {
  if (!audit_.complete()) {
    return absl::DataLossError(absl::StrCat("all workers finished, but only ", audit_.records(),
                                            " records came, and ", audit_.samples_committed(),
                                            " of ", audit_.samples_expected(), " samples"));
  }
  const StoredStatePtr state = states_.newest();
  if (state == nullptr || state->position.phase() != Position::DONE) {
    return absl::DataLossError("all workers finished, but the final state did not come");
  }
  if (state->digest != membership_.state_digest()) {
    return absl::DataLossError(absl::StrCat("the workers finished with state ",
                                            membership_.state_digest(), ", but handed in ",
                                            state->digest));
  }
  return absl::OkStatus();
}

void Run::Conclude() {
  absl::Status status = CheckResult();
  if (status.ok()) {
    const std::vector<float>& parameters = states_.newest()->state.parameters;
    report_.weights_sha256 = WeightsSha256(parameters);
    if (outputs_ != nullptr) status = outputs_->SaveFinalWeights(parameters);
  }
  if (status.ok()) return End(RunOutcome::kSuccess, 0, "");
  End(RunOutcome::kFailed, 1, std::string(status.message()));
}

void Run::End(RunOutcome outcome, int exit_code, const std::string& reason) {
  if (outcome == RunOutcome::kFailed) spdlog::error("the run failed: {}", reason);
  if (outcome == RunOutcome::kInterrupted) spdlog::warn("{}", reason);
  report_.outcome = outcome;
  report_.reason = reason;
  report_.ended = now_;
  CoordinatorMessage message;
  message.mutable_end()->set_exit_code(exit_code == 0 ? 0 : 1);
  message.mutable_end()->set_reason(outcome == RunOutcome::kSuccess ? "training is done" : reason);
  if (exit_code != 0) {  // the workers need not wait for our disk
    for (const auto& [key, session] : sessions_) Send(session.peer, message);
  }
  if (outputs_ != nullptr) {
    if (const absl::Status status = outputs_->Finish(report_); !status.ok()) {
      spdlog::error("{}", std::string(status.message()));
      if (exit_code == 0) exit_code = 1;
    }
  }
  if (outcome == RunOutcome::kSuccess) {
    for (const auto& [key, session] : sessions_) Send(session.peer, message);
  }
  keys_.Begin(0);
  ending_ = Ending{exit_code, now_ + options_.farewell};
}

// ---------------------------------------------------------------- what others may know

void Run::Send(const PeerPtr& peer, CoordinatorMessage message) {
  message.set_run_id(options_.run_id);
  message.set_generation(membership_.generation());
  peer->Send(std::move(message));
}

void Run::Publish() {
  RunStatus status;
  status.set_run_id(options_.run_id);
  status.set_run_dir(report_.run_dir);
  status.set_phase(!ending_                                  ? StatusPhase(membership_.phase())
                   : report_.outcome == RunOutcome::kSuccess ? RunStatus::FINISHED
                                                             : RunStatus::FAILED);
  status.set_reason(ending_ ? report_.reason : membership_.reason());
  status.set_generation(membership_.generation());
  *status.mutable_position() = audit_.position();
  *status.mutable_config() = options_.config;
  for (const Member& member : report_.members) *status.add_members() = member;
  status.set_samples_committed(audit_.samples_committed());
  status.set_samples_expected(audit_.samples_expected());
  if (!report_.history.epochs().empty()) {
    status.set_train_loss(report_.history.epochs().back().loss);
    status.set_train_accuracy(report_.history.epochs().back().accuracy);
  }
  if (const EpochSummary* tested = report_.history.last_evaluated()) {
    status.set_test_loss(tested->val_loss);
    status.set_test_accuracy(tested->val_accuracy);
  }
  MutexLock lock(&mutex_);
  published_ = std::move(status);
}

RunStatus Run::status() const {
  MutexLock lock(&mutex_);
  return published_;
}

absl::Status Run::CheckRun(const std::string& run_id) const {
  if (run_id.empty() || run_id == options_.run_id) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("this is run ", options_.run_id, ", not ", run_id));
}

absl::Status Run::CheckGeneration(const std::string& run_id, uint64_t generation) const {
  RM_RETURN_IF_ERROR(CheckRun(run_id));
  MutexLock lock(&mutex_);
  if (generation == published_.generation() && generation != 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "generation ", generation, " is not the current one, ", published_.generation()));
}

}  // namespace ringmaster
