#include "tests/simulation/worker.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/simulation/sim_state.h"

namespace ringmaster {
namespace {

constexpr absl::Duration kHeartbeatInterval = absl::Milliseconds(500);
constexpr absl::Duration kWelcomeTimeout = absl::Seconds(3);
constexpr int kFetchAttempts = 60;
constexpr int kLeaveAttempts = 20;

}  // namespace

Worker::Worker(const Surroundings& around, const HostNetwork* network, std::string node_id,
               uint32_t local_rank, Holding holding)
    : around_(around),
      network_(network),
      node_id_(std::move(node_id)),
      local_rank_(local_rank),
      timeline_(
          SamplingPlan{around.scenario->config.seed(), around.scenario->config.num_train_samples(),
                       around.scenario->config.global_batch()},
          around.scenario->config.epochs()),
      incarnation_(around.random->Next()),
      held_(std::move(holding)),
      vault_(held_) {
  Redial(around_.random->Milliseconds(0, 100));
  After(kHeartbeatInterval, [this] { Beat(); });
}

std::string Worker::Name() const {
  return absl::StrCat("worker ", node_id_, ".", local_rank_, " (",
                      absl::Hex(incarnation_ >> 48, absl::kZeroPad4), ")");
}

// ---------------------------------------------------------------- time

void Worker::After(absl::Duration delay, std::function<void()> what) {
  around_.queue->After(delay, [this, what = std::move(what)]() mutable { Do(std::move(what)); });
}

void Worker::Do(std::function<void()> what) {
  if (dead_) return;
  if (hangs_) return deferred_.push_back(std::move(what));
  what();
}

void Worker::AfterAtWork(absl::Duration delay, std::function<void()> what) {
  After(delay, [this, number = work_number_, what = std::move(what)] {
    if (number == work_number_) what();
  });
}

// ---------------------------------------------------------------- what goes wrong

void Worker::Kill(bool quietly) {
  if (dead_) return;
  around_.trace->Note(Name(), ": killed", quietly ? " with its host" : "");
  StopWork(quietly);
  dead_ = true;
  if (connection_ == nullptr) return;
  if (quietly) connection_->FallSilent();
  connection_->CloseByWorker();
}

void Worker::Fail() {
  if (connected()) {
    WorkerMessage message;
    message.mutable_failure()->set_code(static_cast<int>(absl::StatusCode::kInternal));
    message.mutable_failure()->set_message("a GPU fell off the bus");
    Send(std::move(message));
  }
  Kill(/*quietly=*/false);
}

void Worker::Hang() {
  if (dead_ || hangs_) return;
  hangs_ = true;
  around_.trace->Note(Name(), ": SIGSTOP");
}

void Worker::Continue() {
  if (dead_ || !hangs_) return;
  hangs_ = false;
  around_.trace->Note(Name(), ": SIGCONT");
  for (auto& what : std::exchange(deferred_, {})) Do(std::move(what));
}

void Worker::Leave() {
  Do([this] {
    around_.trace->Note(Name(), ": SIGTERM");
    if (std::exchange(leaving_, true)) return;
    flag_ = true;
    if (work_ != Work::kTraining && work_ != Work::kFinished) LeaveNow(kLeaveAttempts);
  });
}

void Worker::BreakConnection() {
  if (connection_ == nullptr) return;
  around_.trace->Note(Name(), ": its stream breaks");
  connection_->Break();
}

void Worker::SilenceConnection() {
  if (connection_ == nullptr) return;
  around_.trace->Note(Name(), ": its stream falls silent");
  Connection* const connection = connection_;
  connection->FallSilent();
  After(around_.random->Milliseconds(500, 6000), [this, connection] {
    if (connection_ != connection) return;
    connection->CloseByWorker();
    HandleEnd(absl::UnavailableError("keepalive"));
  });
}

void Worker::Die(bool run_over) {
  if (dead_) return;
  around_.trace->Note(Name(), ": exits");
  StopWork(/*quietly=*/false);
  dead_ = true;
  if (connection_ != nullptr) connection_->CloseByWorker();
  around_.ended(this, run_over);
}

// ---------------------------------------------------------------- the stream

void Worker::Redial(absl::Duration delay) {
  After(delay, [this] { Dial(); });
}

void Worker::Dial() {
  if (connection_ != nullptr) return;
  if (!IsCut()) connection_ = around_.coordinator->Dial(this);
  if (connection_ == nullptr) return Redial(around_.random->Milliseconds(50, 1000));
  welcomed_ = false;
  WorkerMessage message;
  Hello* hello = message.mutable_hello();
  hello->set_incarnation(incarnation_);
  hello->set_node_id(node_id_);
  hello->set_host(node_id_);
  hello->set_local_rank(local_rank_);
  hello->set_local_world_size(around_.scenario->processes_per_node);
  hello->set_device(CPU);
  hello->set_version("1");
  hello->set_data_digest("data");
  Send(std::move(message));
  WatchWelcome(connection_);
}

void Worker::WatchWelcome(Connection* connection) {
  After(kWelcomeTimeout, [this, connection] {
    if (connection_ != connection || welcomed_) return;
    connection->CloseByWorker();
    HandleEnd(absl::UnavailableError("no welcome"));
  });
}

void Worker::OnMessage(Connection* connection, const CoordinatorMessage& message) {
  Do([this, connection, message] {
    if (connection_ == connection) HandleMessage(message);
  });
}

void Worker::OnEnd(Connection* connection, const absl::Status& status) {
  Do([this, connection, status] {
    if (connection_ == connection) HandleEnd(status);
  });
}

void Worker::HandleEnd(const absl::Status& status) {
  connection_ = nullptr;
  welcomed_ = false;
  around_.trace->Note(Name(), ": stream ended: ", status.ToString());
  absl::Duration delay = around_.random->Milliseconds(20, 1000);
  if (absl::IsAborted(status)) {
    StopWork(/*quietly=*/false);
    incarnation_ = around_.random->Next();
    generation_ = 0;
  } else if (absl::StartsWith(status.message(), "the run is over")) {
    return Die(/*run_over=*/true);
  } else if (absl::IsResourceExhausted(status)) {
    delay += absl::Seconds(1);
  } else if (!absl::IsUnavailable(status)) {
    around_.trace->Violate(Name(), " was refused: ", status.ToString());
  }
  Redial(delay);
}

void Worker::Beat() {
  if (connected()) {
    WorkerMessage message;
    *message.mutable_heartbeat()->mutable_position() = position();
    Send(std::move(message));
  }
  After(kHeartbeatInterval, [this] { Beat(); });
}

Position Worker::position() const { return ToProto(timeline_, held_.position); }

void Worker::Send(WorkerMessage message) {
  if (connection_ == nullptr) return;
  message.set_run_id("run");
  message.set_generation(generation_);
  connection_->Send(std::move(message));
}

// ---------------------------------------------------------------- what the coordinator says

void Worker::HandleMessage(const CoordinatorMessage& message) {
  const bool current = message.generation() == generation_;
  if (message.has_welcome()) return HandleWelcome(message);
  if (message.has_assignment()) return HandleAssignment(message);
  if (message.has_ack()) return Acknowledge(message.ack().records_received());
  if (message.has_end()) return Die(/*run_over=*/true);
  if (message.has_abort() && current && work_ != Work::kIdle) {
    StopWork(/*quietly=*/false);
    StandBy("", std::nullopt);
  }
  if (message.has_regroup() && current) flag_ = true;
}

void Worker::HandleWelcome(const CoordinatorMessage& message) {
  const ringmaster::Welcome& welcome = message.welcome();
  welcomed_ = true;
  Acknowledge(welcome.records_received());
  next_send_ = received_;
  const bool another = std::exchange(coordinator_incarnation_, welcome.coordinator_incarnation()) !=
                       welcome.coordinator_incarnation();
  if (!welcome.recognised()) {
    StopWork(/*quietly=*/false);
    generation_ = 0;
    StandBy("", std::nullopt);
    return;
  }
  if (work_ == Work::kIdle && !leaving_) SendStanding();
  SendRecords();
  if (work_ != Work::kFinished) return;
  // What the former coordinator had may have died with it.
  if (another && assignment_.rank() == 0) HandIn();
  SendFinished();
}

void Worker::HandleAssignment(const CoordinatorMessage& message) {
  StopWork(/*quietly=*/false);
  if (leaving_) return;
  generation_ = message.generation();
  assignment_ = message.assignment();
  flag_ = false;
  work_ = Work::kPreparing;
  const uint64_t position = FromProto(timeline_, assignment_.position()).value_or(0);
  around_.trace->Note(Name(), ": rank ", assignment_.rank(), " of generation ", generation_,
                      " at record ", position);
  const bool has_it =
      held_.generation > 0 && ChainDigest(held_.chain) == assignment_.state_digest();
  // Records of another state may be of another lineage.
  if (!has_it) held_.records.clear();
  held_.position = position;
  received_ = 0;
  Acknowledge(assignment_.records_received());
  next_send_ = received_;
  if (assignment_.rank() == 0 && received_ < position && held_.records_from() > received_) {
    around_.trace->Violate(Name(), " is to send records from ", received_, ", but has them from ",
                           held_.records_from());
  }
  SendRecords();
  if (has_it) {
    held_.generation = generation_;
    if (assignment_.hand_in_state()) HandIn();
    return Rendezvous();
  }
  if (assignment_.hand_in_state()) {
    around_.trace->Violate(Name(), " is to hand in ", assignment_.state_digest(), ", but has ",
                           ChainDigest(held_.chain));
  }
  held_.generation = 0;
  if (!assignment_.state_digest().empty()) return Fetch(kFetchAttempts);
  held_.chain = kInitialChain;
  held_.generation = generation_;
  Rendezvous();
}

void Worker::Acknowledge(uint64_t records) {
  received_ = records;
  while (!held_.records.empty() && held_.records_from() < received_) held_.records.pop_front();
}

// ---------------------------------------------------------------- states

// Again and again until it has come, or the generation is over.
void Worker::HandIn() {
  const StoredStatePtr state = StoreChain(timeline_, generation_, held_.position, held_.chain);
  vault_ = held_;
  AfterAtWork(
      around_.random->Between(absl::Microseconds(100), absl::Milliseconds(20)), [this, state] {
        if (IsCut()) {
          AfterAtWork(absl::Milliseconds(300), [this] { HandIn(); });
          return;
        }
        // It goes to wherever the coordinator is by then, and may be late.
        around_.queue->After(
            around_.random->Chance(10) ? around_.random->Milliseconds(1, 3000)
                                       : around_.random->Milliseconds(0, 5),
            [this, state, number = work_number_] {
              around_.coordinator->PutState(state, [=, this](const absl::Status& status) {
                around_.trace->Note(Name(), ": state ", state->digest, ": ", status.ToString());
                if (!absl::IsUnavailable(status) || number != work_number_) return;
                AfterAtWork(absl::Milliseconds(200), [this] { HandIn(); });
              });
            });
      });
}

void Worker::Fetch(int attempts) {
  AfterAtWork(around_.random->Milliseconds(1, 100), [this, attempts] {
    if (attempts == 0) return StandBy("the state did not come", std::nullopt);
    if (IsCut()) return Fetch(attempts - 1);
    const auto state = around_.coordinator->GetState(generation_, assignment_.state_digest());
    // The abort is on its way; or the coordinator comes back.
    if (absl::IsFailedPrecondition(state.status())) return;
    if (!state.ok() || *state == nullptr) return Fetch(attempts - 1);
    held_.chain = ChainOf((*state)->state);
    held_.generation = generation_;
    Rendezvous();
  });
}

// ---------------------------------------------------------------- training

void Worker::Rendezvous() {
  if (held_.position == timeline_.end()) return Finish();
  AfterAtWork(around_.random->Milliseconds(1, 20), [this] {
    if (IsCut() || !around_.coordinator->GetState(generation_, "").ok()) {
      AfterAtWork(absl::Milliseconds(100), [this] { Rendezvous(); });
      return;
    }
    work_ = Work::kTraining;
    Compute();
  });
}

void Worker::Compute() {
  AfterAtWork(around_.random->Between(absl::Microseconds(100), around_.scenario->slowest_step),
              [this] {
                around_.exchange->Arrive(generation_, assignment_.world_size(), assignment_.rank(),
                                         this, held_.position, flag_);
              });
}

void Worker::OnExchanged(uint64_t generation, uint64_t position, bool flag) {
  Do([this, generation, position, flag] {
    if (work_ != Work::kTraining || generation_ != generation || held_.position != position) return;
    StepDone(flag);
  });
}

void Worker::StepDone(bool flag) {
  around_.checker->OnStep(generation_, assignment_.rank(), incarnation_);
  held_.chain = NextChain(held_.chain, held_.position, generation_);
  held_.records.push_back(ChainRecord(around_.scenario->config, held_.position, held_.chain));
  ++held_.position;
  if (around_.random->Chance(30)) vault_ = held_;
  around_.trace->Note(Name(), ": finished record ", held_.position - 1, " of generation ",
                      generation_, ": ", ChainDigest(held_.chain));
  Acknowledge(received_);
  SendRecords();
  ResendNowAndThen();
  if (flag) return StopAgreed();
  if (held_.position == timeline_.end()) return Finish();
  const bool epoch_end = held_.position % timeline_.records_per_epoch() == 0;
  const uint32_t every = around_.scenario->checkpoint_every_steps;
  const bool due = every > 0 && held_.position % (every + 1) == 0;
  if (assignment_.rank() == 0 && (epoch_end || due)) HandIn();
  Compute();
}

void Worker::OnBroken(uint64_t generation, uint32_t gone) {
  Do([this, generation, gone] {
    if (work_ != Work::kTraining || generation_ != generation) return;
    around_.trace->Note(Name(), ": cannot reach rank ", gone);
    StopWork(/*quietly=*/false);
    StandBy("a peer has gone", gone);
  });
}

void Worker::StopAgreed() {
  work_ = Work::kIdle;
  if (assignment_.rank() == 0) HandIn();
  if (leaving_) return LeaveNow(kLeaveAttempts);
  StandBy("", std::nullopt);
}

void Worker::Finish() {
  work_ = Work::kFinished;
  around_.trace->Note(Name(), ": is done");
  if (assignment_.rank() == 0) HandIn();
  SendFinished();
}

void Worker::StopWork(bool quietly) {
  if (work_ == Work::kTraining) {
    around_.exchange->Leave(generation_, assignment_.rank(), quietly);
  }
  work_ = Work::kIdle;
  reason_.clear();
  unreachable_.reset();
  ++work_number_;
}

void Worker::StandBy(const std::string& reason, std::optional<uint32_t> unreachable) {
  work_ = Work::kIdle;
  reason_ = reason;
  unreachable_ = unreachable;
  if (leaving_) return LeaveNow(kLeaveAttempts);
  SendStanding();
}

// What it has goes before it; but it does not wait for long.
void Worker::LeaveNow(int attempts) {
  if (!connected() && attempts > 0) {
    return After(absl::Milliseconds(150), [this, attempts] { LeaveNow(attempts - 1); });
  }
  // Rank 0 has handed in its state before.
  After(absl::Milliseconds(30), [this] {
    WorkerMessage message;
    message.mutable_leaving()->set_reason("SIGTERM");
    Send(std::move(message));
    Die(/*run_over=*/false);
  });
}

// ---------------------------------------------------------------- what it says

void Worker::SendStanding() {
  if (!connected()) return;
  WorkerMessage message;
  Standing* standing = message.mutable_standing();
  standing->set_generation(held_.generation);
  if (held_.generation > 0) {
    *standing->mutable_position() = position();
    standing->set_state_digest(ChainDigest(held_.chain));
    standing->set_records_from(held_.records_from());
  }
  standing->set_reason(reason_);
  if (unreachable_) standing->add_unreachable(*unreachable_);
  Send(std::move(message));
}

void Worker::SendFinished() {
  if (!connected()) return;
  WorkerMessage message;
  message.mutable_finished()->set_state_digest(ChainDigest(held_.chain));
  Send(std::move(message));
}

void Worker::SendRecords() {
  if (!connected() || work_ == Work::kIdle || assignment_.rank() != 0) return;
  next_send_ = std::max(next_send_, held_.records_from());
  if (next_send_ >= held_.position) return;
  WorkerMessage message;
  for (; next_send_ < held_.position; ++next_send_) {
    *message.mutable_records()->add_records() = held_.records[next_send_ - held_.records_from()];
  }
  Send(std::move(message));
}

// What is not acknowledged may be sent again at any time.
void Worker::ResendNowAndThen() {
  if (!around_.random->Chance(10)) return;
  next_send_ = held_.records_from();
  SendRecords();
}

}  // namespace ringmaster
