#include "coordinator/run.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/identity.h"
#include "common/status_macros.h"
#include "common/subprocess.h"
#include "spdlog/spdlog.h"

namespace ringmaster {
namespace {

// Refused sessions that are worth a warning; a stranger that keeps on knocking is not.
constexpr int kRefusalsShown = 20;
// Ranks that do not send records hear less often that they may forget them.
constexpr absl::Duration kAckInterval = absl::Milliseconds(500);
constexpr uint64_t kJournalRotationBytes = uint64_t{8} << 20;
// The first steps of a generation are slow: they are not measured.
constexpr uint64_t kWarmUpSteps = 10;

}  // namespace

Run::Run(RunOptions options, RunState state, std::unique_ptr<Journal> journal,
         StoredStatePtr stored, absl::Time now)
    : options_(std::move(options)),
      run_id_(state.run_id()),
      now_(now),
      state_(std::move(state)),
      journal_(std::move(journal)),
      membership_(options_.membership, now) {
  const GenerationFormed& former = state_.generation();
  // After an end, and after a failure, nobody is at work any more.
  std::vector<Hello> members;
  if (!state_.ended() && !state_.broken()) {
    members.assign(former.members().begin(), former.members().end());
  }
  const bool progressed = state_.ledger().size() > former.position();
  membership_.Restore(now, former.generation(), members, progressed, state_.failures(),
                      state_.ended() ? 0 : state_.fruitless_failures(), state_.first_cause());
  keys_.Begin(former.generation());
  JournalEntry entry;
  entry.mutable_started()->set_incarnation(options_.incarnation);
  entry.mutable_started()->set_unix_us(absl::ToUnixMicros(now));
  Record(std::move(entry));
  if (stored != nullptr) {
    states_.Put(stored);
    verified_ = FromProto(state_.ledger().timeline(), stored->position).value_or(0);
    if (verified_ == state_.ledger().timeline().end()) membership_.FinalStateSafe(stored->digest);
    stored_ = std::move(stored);
  }
  seen_position_ = state_.ledger().size();
  FillReport(state_, &report_);
  Publish();
}

Run::~Run() { writer_.reset(); }

void Run::Begin(std::unique_ptr<RunOutputs> outputs, std::unique_ptr<StateWriter> writer) {
  outputs_ = std::move(outputs);
  writer_ = std::move(writer);
  if (outputs_ != nullptr) report_.run_dir = outputs_->run_dir();
  // The checkpoint that the run is begun from may not stay where it is.
  if (writer_ != nullptr && stored_ != nullptr && generation() == 0) Write(stored_, true);
  Publish();
}

std::optional<int> Run::Advance(absl::Time now) {
  now_ = now;
  for (const auto& letter : mailbox_.Take()) letter();
  if (!ending_) Decide();
  const bool durable = Commit();
  Publish();  // before anybody can ask with a new number
  if (durable || ending_) FlushOutbox();
  if (durable && !ending_) SendAcks();
  if (ending_ && (sessions_.empty() || now >= ending_->leave_at)) return ending_->exit_code;
  return std::nullopt;
}

void Run::Stop(int signal) {
  if (ending_) return;
  const bool again = interruption_.has_value();
  interruption_ = Interruption{signal, again ? now_ : now_ + options_.interruption};
  membership_.RequestRegroup("the run is being interrupted");
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
  absl::Status status;
  if (!ending_) {
    status =
        membership_.Contains(session.member)
            ? Handle(session, message)
            : absl::AbortedError(absl::StrCat("put out: ", membership_.WhyGone(session.member)));
  }
  if (status.ok()) return peer->ReadNext();
  Refuse(peer, membership_.Describe(session.member), status);
  membership_.Disconnected(now_, session.member,
                           absl::StrCat("was put out: ", std::string(status.message())));
}

void Run::HandleHello(const PeerPtr& peer, const WorkerMessage& message) {
  const Hello& hello = message.hello();
  const std::string who = message.has_hello()
                              ? absl::StrCat("a process of host ", hello.host().substr(0, 64),
                                             " (pid ", hello.pid(), ")")
                              : "a stranger";
  absl::Status status = CheckRun(message.run_id());
  if (!message.has_hello()) status = absl::InvalidArgumentError("the first message is not a hello");
  if (!status.ok()) return Refuse(peer, who, status);
  if (ending_) {  // it comes late, and hears at once how the run has ended
    sessions_[peer.get()] = {peer, 0};
    Send(peer, ending_->message);
    return peer->ReadNext();
  }
  const auto joined = membership_.Join(now_, message.generation(), hello);
  if (!joined.ok()) return Refuse(peer, who, joined.status());
  // Its former stream, if it has not ended yet, is nobody's now.
  for (auto at = sessions_.begin(); at != sessions_.end();) {
    const bool former = at->second.member == joined->id;
    if (former) at->second.peer->Close(absl::AbortedError("a newer stream has taken its place"));
    at = former ? sessions_.erase(at) : std::next(at);
  }
  const Session session{peer, joined->id};
  sessions_[peer.get()] = session;
  spdlog::debug("{} {} with {}", who, joined->recognised ? "came back" : "joined",
                hello.device_description());
  Welcome(session, joined->recognised);
  peer->ReadNext();
}

void Run::Welcome(const Session& session, bool recognised) {
  CoordinatorMessage answer;
  ringmaster::Welcome* welcome = answer.mutable_welcome();
  welcome->set_coordinator_incarnation(options_.incarnation);
  *welcome->mutable_config() = state_.config();
  welcome->set_heartbeat_interval_ms(
      static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.heartbeat_interval)));
  welcome->set_recognised(recognised);
  welcome->set_records_received(state_.ledger().size());
  welcome->set_checkpoint_every_steps(options_.checkpoint_every_steps);
  welcome->set_checkpoint_every_seconds(absl::ToDoubleSeconds(options_.checkpoint_every_time));
  Send(session.peer, std::move(answer));
  if (!recognised || !membership_.MustAbort(session.member)) return;
  CoordinatorMessage abort;
  abort.mutable_abort()->set_reason(membership_.reason());
  Send(session.peer, std::move(abort));
}

absl::Status Run::CheckEnvelope(const WorkerMessage& message) const {
  if (message.run_id() != run_id_) {
    return absl::FailedPreconditionError(
        absl::StrCat("this is run ", run_id_, ", the message is of run ", message.run_id()));
  }
  if (message.has_hello()) return absl::FailedPreconditionError("a second hello");
  // Of an old generation: what was sent before the assignment arrived, and what says what the
  // process holds. None of it can change what the current one does.
  const bool harmless = message.has_heartbeat() || message.has_failure() ||
                        message.has_standing() || message.has_leaving();
  if (harmless || message.generation() == generation()) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat("a message of generation ", message.generation(),
                                         "; the current one is ", generation()));
}

absl::Status Run::Handle(const Session& session, const WorkerMessage& message) {
  RM_RETURN_IF_ERROR(CheckEnvelope(message));
  membership_.Heard(now_, session.member);
  const bool current = message.generation() == generation();
  switch (message.kind_case()) {
    case WorkerMessage::kHeartbeat:
      if (current && membership_.RankOf(session.member)) HandleHeartbeat(message.heartbeat());
      return absl::OkStatus();
    case WorkerMessage::kRecords:
      return HandleRecords(session, message.records());
    case WorkerMessage::kFinished:
      membership_.Finished(session.member, message.finished().state_digest());
      return absl::OkStatus();
    case WorkerMessage::kStanding:
      // Sent before an assignment that it crossed: the process will do as that says.
      if (membership_.RankOf(session.member) && !current) return absl::OkStatus();
      RM_RETURN_IF_ERROR(
          FromProto(state_.ledger().timeline(), message.standing().position()).status());
      membership_.Stands(now_, session.member, message.standing());
      return absl::OkStatus();
    case WorkerMessage::kLeaving:
      spdlog::info("{} leaves: {}", membership_.Describe(session.member),
                   message.leaving().reason());
      membership_.Leaves(now_, session.member);
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
  absl::Status audit;
  JournalEntry entry;
  for (GlobalRecord record : records.records()) {
    // What the workers measured leaves out what was lost between generations.
    const Timeline& timeline = state_.ledger().timeline();
    const bool broken_epoch =
        record.epoch() < timeline.epochs() &&
        state_.generation().position() > timeline.IndexOf({record.epoch(), 0, false});
    if (record.epoch_seconds() > 0 && broken_epoch) {
      record.set_epoch_seconds(absl::ToDoubleSeconds(now_ - state_.epoch_began()));
    }
    const absl::StatusOr<bool> is_new = state_.Take(record, now_);
    audit = is_new.status();
    if (!audit.ok()) break;
    if (!*is_new) continue;
    OnRecord(record);
    *entry.mutable_records()->add_records() = std::move(record);
  }
  // It is applied already, record by record.
  if (entry.records().records_size() > 0) {
    entry.mutable_records()->set_unix_us(absl::ToUnixMicros(now_));
    journal_->Append(entry.SerializeAsString());
  }
  if (!audit.ok()) {
    End(RunOutcome::kFailed, 1, absl::StrCat("the audit failed: ", std::string(audit.message())));
    return absl::OkStatus();
  }
  if (waiting_ == nullptr) return absl::OkStatus();
  const auto position = FromProto(state_.ledger().timeline(), waiting_->position);
  if (position.ok() && *position <= state_.ledger().size()) {
    AcceptState(std::exchange(waiting_, nullptr), *position);
  }
  return absl::OkStatus();
}

void Run::OnRecord(const GlobalRecord& record) {
  const Ledger& ledger = state_.ledger();
  if (!record.evaluation()) {
    float slowest_us = 0;
    for (int rank = 0; rank < record.compute_us_size(); ++rank) {
      slowest_us = std::max(slowest_us, record.compute_us(rank) + record.all_reduce_us(rank));
    }
    if (++steps_in_generation_ > kWarmUpSteps && slowest_us > 0) {
      step_clock_.Add(absl::Microseconds(slowest_us));
    }
  }
  report_.history.Add(record);
  if (outputs_ != nullptr) outputs_->Record(record, now_);
  // What the former generation still sends does not count.
  const bool trains = membership_.phase() == Membership::Phase::kTraining;
  if (broken_at_ && trains && ledger.size() > state_.generation().position()) {
    const double seconds = absl::ToDoubleSeconds(now_ - *broken_at_);
    spdlog::info("generation {} trains on {:.3f} s after the failure", generation(), seconds);
    JournalEntry entry;
    entry.mutable_recovered()->set_seconds(seconds);
    Record(std::move(entry));
    broken_at_.reset();
  }
  NoteProgress(ledger.size());
}

void Run::HandleHeartbeat(const Heartbeat& heartbeat) {
  const auto position = FromProto(state_.ledger().timeline(), heartbeat.position());
  if (position.ok()) NoteProgress(*position);
}

void Run::NoteProgress(uint64_t position) {
  if (position <= seen_position_) return;
  seen_position_ = position;
  membership_.Progressed(now_, HangLimit());
}

// Twenty times what a step usually takes. An evaluation counts as the steps that its samples would
// make.
absl::Duration Run::HangLimit() const {
  const Ledger& ledger = state_.ledger();
  const bool evaluates =
      seen_position_ < ledger.timeline().end() && ledger.timeline().At(seen_position_).evaluation;
  const double steps = evaluates ? 1.0 + static_cast<double>(state_.config().num_test_samples()) /
                                             state_.config().global_batch()
                                 : 1.0;
  return 20 * steps * step_clock_.P99();
}

void Run::HandleClosed(const PeerPtr& peer) {
  const auto found = sessions_.find(peer.get());
  if (found == sessions_.end()) return;
  const MemberId member = found->second.member;
  sessions_.erase(found);
  membership_.Disconnected(now_, member, "was lost: its stream broke without a word");
}

void Run::Refuse(const PeerPtr& peer, const std::string& who, const absl::Status& status) {
  spdlog::log(++refusals_ <= kRefusalsShown ? spdlog::level::warn : spdlog::level::debug,
              "refused {}: {}", who, std::string(status.message()));
  sessions_.erase(peer.get());
  peer->Close(status);
}

// ---------------------------------------------------------------- states

absl::Status Run::HandleState(const StoredStatePtr& state) {
  RM_RETURN_IF_ERROR(CheckGeneration(run_id_, state->generation));
  if (ending_) return absl::FailedPreconditionError("the run is over");
  const Timeline& timeline = state_.ledger().timeline();
  RM_ASSIGN_OR_RETURN(const uint64_t position, FromProto(timeline, state->position));
  for (const StoredStatePtr& newer : {stored_, waiting_}) {
    const bool overtaken = newer != nullptr && newer->generation == state->generation &&
                           FromProto(timeline, newer->position).value_or(0) > position;
    if (overtaken) return absl::OkStatus();
  }
  states_.Put(state);
  keys_.Set(state->generation, StateKey(state->digest), "").IgnoreError();
  if (position > state_.ledger().size()) {
    waiting_ = state;  // the records come by another stream, and may come later
  } else {
    AcceptState(state, position);
  }
  return absl::OkStatus();
}

void Run::AcceptState(const StoredStatePtr& state, uint64_t position) {
  const Ledger& ledger = state_.ledger();
  stored_ = state;
  if (outputs_ != nullptr && position > ledger.base() &&
      ledger.timeline().At(position - 1).evaluation) {
    outputs_->Weights(ledger.timeline().At(position - 1).epoch, state->state, now_);
  }
  const bool is_final = position == ledger.timeline().end();
  if (is_final) membership_.FinalStateSafe(state->digest);
  if (writer_ != nullptr) Write(state, is_final);
}

void Run::Write(const StoredStatePtr& state, bool required) {
  writer_->Write(state, required, [this, state](absl::StatusOr<std::string> file) {
    mailbox_.Post([this, state, file = std::move(file)] { HandleVerified(state, file); });
  });
}

void Run::HandleVerified(const StoredStatePtr& state, const absl::StatusOr<std::string>& file) {
  const auto position = FromProto(state_.ledger().timeline(), state->position);
  if (!file.ok()) {
    if (!absl::IsCancelled(file.status()) && !std::exchange(checkpoints_fail_, true)) {
      spdlog::error("no checkpoint at {}, training goes on: {}",
                    DescribePosition(state_.ledger().timeline(), *position),
                    std::string(file.status().message()));
    }
    return;
  }
  if (!state_.ledger().lineage().Contains(state->generation, *position))
    return;  // of a lost lineage
  if (std::exchange(checkpoints_fail_, false)) spdlog::info("checkpoints can be written again");
  spdlog::debug("checkpoint {}", *file);
  verified_ = std::max(verified_, *position);
  JournalEntry entry;
  StateVerified* verified = entry.mutable_verified();
  verified->set_generation(state->generation);
  verified->set_position(*position);
  verified->set_digest(state->digest);
  verified->set_file(*file);
  Record(std::move(entry));
}

// ---------------------------------------------------------------- what is kept

void Run::Record(JournalEntry entry) {
  if (const absl::Status status = state_.Apply(entry); !status.ok()) {
    spdlog::critical("a decision that does not fit the run: {}", std::string(status.message()));
    std::abort();
  }
  journal_->Append(entry.SerializeAsString());
}

bool Run::Commit() {
  absl::Status status = journal_->Commit();
  if (status.ok() && journal_->size() > kJournalRotationBytes) {
    // What the logs have not written yet must not be forgotten with the former entries.
    if (outputs_ != nullptr) status = outputs_->SyncLogs();
    if (status.ok()) status = journal_->Rotate(state_.Snapshot().SerializeAsString());
  }
  if (!status.ok() && !journal_fails_) {
    spdlog::error(
        "the journal cannot be written, training goes on: {}. Until it can, a coordinator that "
        "dies loses what the workers do not have any more",
        std::string(status.message()));
  }
  if (status.ok() && journal_fails_) spdlog::info("the journal can be written again");
  journal_fails_ = !status.ok();
  return status.ok();
}

void Run::SendAcks() {
  const uint64_t size = state_.ledger().size();
  const std::vector<MemberId>& ranks = membership_.ranks();
  const bool everybody = size != told_everybody_ && now_ - told_everybody_at_ >= kAckInterval;
  if (ranks.empty() || (size == told_sender_ && !everybody)) return;
  CoordinatorMessage message;
  message.mutable_ack()->set_records_received(size);
  for (const MemberId id : ranks) {
    const Session* session = SessionOf(id);
    if (session != nullptr) Send(session->peer, message);
    if (!everybody) break;
  }
  FlushOutbox();
  told_sender_ = size;
  if (!everybody) return;
  told_everybody_ = size;
  told_everybody_at_ = now_;
}

// ---------------------------------------------------------------- what others may know

void Run::Send(const PeerPtr& peer, CoordinatorMessage message) {
  message.set_run_id(run_id_);
  message.set_generation(generation());
  outbox_.emplace_back(peer, std::move(message));
}

void Run::SendToMembers(const CoordinatorMessage& message) {
  for (const auto& [key, session] : sessions_) Send(session.peer, message);
}

void Run::FlushOutbox() {
  for (auto& [peer, message] : outbox_) peer->Send(std::move(message));
  outbox_.clear();
}

const Run::Session* Run::SessionOf(MemberId member) const {
  for (const auto& [key, session] : sessions_) {
    if (session.member == member) return &session;
  }
  return nullptr;
}

void Run::Publish() {
  const Ledger& ledger = state_.ledger();
  RunStatus status;
  status.set_run_id(run_id_);
  status.set_run_dir(report_.run_dir);
  const bool training = membership_.phase() == Membership::Phase::kTraining;
  status.set_phase(!ending_                                  ? (training            ? RunStatus::TRAINING
                                                                : generation() == 0 ? RunStatus::WAITING
                                                                                    : RunStatus::RECOVERING)
                   : report_.outcome == RunOutcome::kSuccess ? RunStatus::FINISHED
                                                             : RunStatus::FAILED);
  status.set_reason(ending_ ? report_.reason : membership_.reason());
  status.set_generation(generation());
  *status.mutable_position() = ToProto(ledger.timeline(), ledger.size());
  *status.mutable_config() = state_.config();
  for (const Member& member : report_.members) *status.add_members() = member;
  status.set_samples_committed(ledger.samples());
  status.set_samples_expected(ledger.samples_expected());
  if (!report_.history.epochs().empty()) {
    status.set_train_loss(report_.history.epochs().back().loss);
    status.set_train_accuracy(report_.history.epochs().back().accuracy);
  }
  if (const EpochSummary* tested = report_.history.last_evaluated()) {
    status.set_test_loss(tested->val_loss);
    status.set_test_accuracy(tested->val_accuracy);
  }
  status.set_failures_survived(state_.failures());
  status.set_coordinator_incarnation(options_.incarnation);
  status.set_coordinator_pid(getpid());
  status.set_coordinator_host(HostName());
  MutexLock lock(&mutex_);
  published_ = std::move(status);
  lineage_ = ledger.lineage();
}

bool Run::OnLineage(uint64_t generation, uint64_t position) const {
  MutexLock lock(&mutex_);
  return lineage_.Contains(generation, position);
}

RunStatus Run::status() const {
  MutexLock lock(&mutex_);
  return published_;
}

absl::Status Run::CheckRun(const std::string& run_id) const {
  if (run_id.empty() || run_id == run_id_) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("this is run ", run_id_, ", not ", run_id));
}

absl::Status Run::CheckGeneration(const std::string& run_id, uint64_t generation) const {
  RM_RETURN_IF_ERROR(CheckRun(run_id));
  MutexLock lock(&mutex_);
  if (generation == published_.generation() && generation != 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "generation ", generation, " is not the current one, ", published_.generation()));
}

}  // namespace ringmaster
