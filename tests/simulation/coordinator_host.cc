#include "tests/simulation/coordinator_host.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/simulation/sim_state.h"

namespace ringmaster {
namespace {

constexpr size_t kMostConnections = 4000;

}  // namespace

CoordinatorHost::CoordinatorHost(EventQueue* queue, Random* random, Trace* trace, Checker* checker,
                                 const Scenario& scenario, Mutation mutation)
    : queue_(queue),
      random_(random),
      trace_(trace),
      checker_(checker),
      scenario_(scenario),
      mutation_(mutation),
      disk_(queue, random, trace, mutation),
      wake_at_(absl::InfiniteFuture()),
      hangs_until_(absl::InfinitePast()) {
  peers_.reserve(kMostConnections);
}

CoordinatorHost::~CoordinatorHost() { run_.reset(); }

// ---------------------------------------------------------------- life and death

// As OpenRunFiles does.
std::optional<RunState> CoordinatorHost::Restore() {
  const std::vector<std::string> entries = disk_.Crash();
  std::optional<RunState> state;
  for (const std::string& bytes : entries) {
    JournalEntry entry;
    if (bytes.empty()) break;
    if (!entry.ParseFromString(bytes)) {
      trace_->Violate("the journal has an entry that cannot be read");
      return std::nullopt;
    }
    if (!state) {
      auto from = RunState::FromSnapshot(entry);
      if (from.ok()) {
        state = *std::move(from);
        continue;
      }
      trace_->Violate("the journal cannot be read: ", std::string(from.status().message()));
      return std::nullopt;
    }
    if (const absl::Status applied = state->Apply(entry); !applied.ok()) {
      trace_->Violate("the journal cannot be replayed: ", std::string(applied.message()));
      return std::nullopt;
    }
  }
  return state;
}

void CoordinatorHost::Start() {
  if (alive() || trace_->violated()) return;
  std::optional<RunState> state = Restore();
  if (trace_->violated()) return;
  auto journal = disk_.OpenJournal();
  if (!state) {
    state.emplace("run", "1", scenario_.config, queue_->now());
    // Without a journal it does not even begin.
    if (!journal->Rotate(state->Snapshot().SerializeAsString()).ok()) return;
  }
  checker_->OnRestored(*state);
  trace_->Note("coordinator: starts with generation ", state->generation().generation(), ", ",
               state->ledger().size(), " records");
  if (state->ended() && state->ended()->outcome() == RunEnded::SUCCESS) {
    last_state_ = std::move(state);
    return told_exit_(0);
  }
  StoredStatePtr stored = disk_.LoadStored(*state);
  RunOptions options;
  options.incarnation = ++life_;
  options.membership = scenario_.membership;
  options.checkpoint_every_steps = scenario_.checkpoint_every_steps;
  run_ = std::make_unique<Run>(options, *std::move(state), std::move(journal), std::move(stored),
                               queue_->now() + clock_ahead_);
  run_->Begin(nullptr, disk_.OpenWriter());
  hangs_until_ = absl::InfinitePast();
  wake_at_ = absl::InfiniteFuture();
  if (mutation_ == Mutation::kNoGrace) RunOutGrace();
  if (alive()) WakeWithin(absl::ZeroDuration());
}

// Its clock runs through the grace before anybody can have come back.
void CoordinatorHost::RunOutGrace() {
  const absl::Duration grace = scenario_.membership.reconnect_grace();
  for (absl::Duration passed; passed <= grace && alive(); passed += absl::Milliseconds(500)) {
    clock_ahead_ += absl::Milliseconds(500);
    Turn();
  }
}

void CoordinatorHost::Crash() {
  if (!alive()) return;
  trace_->Note("coordinator: killed");
  End();
}

void CoordinatorHost::CrashAtCommit(bool before) {
  if (alive()) disk_.DieAtCommit(before ? Disk::Death::kBeforeCommit : Disk::Death::kAfterCommit);
}

void CoordinatorHost::End() {
  run_.reset();
  for (const auto& connection : connections_) {
    if (connection->life() == life_) connection->CloseByDeath();
  }
}

void CoordinatorHost::Hang(absl::Duration time) {
  hangs_until_ = queue_->now() + time;
  trace_->Note("coordinator: stands still for ", absl::FormatDuration(time));
}

void CoordinatorHost::Interrupt() {
  if (!alive()) return;
  trace_->Note("coordinator: SIGINT");
  run_->Stop(2);
}

// ---------------------------------------------------------------- turns

void CoordinatorHost::WakeWithin(absl::Duration time) {
  const absl::Time at = std::max(queue_->now() + time, hangs_until_);
  if (!alive() || wake_at_ <= at) return;
  wake_at_ = at;
  queue_->After(at - queue_->now(), [this, at, life = life_] {
    if (!HasLife(life) || wake_at_ != at) return;
    wake_at_ = absl::InfiniteFuture();
    if (queue_->now() >= hangs_until_) Turn();
    if (alive()) WakeWithin(random_->Milliseconds(20, 200));
  });
}

void CoordinatorHost::Turn() {
  const std::optional<int> exit_code = run_->Advance(queue_->now() + clock_ahead_);
  if (disk_.died()) {
    trace_->Note("coordinator: killed at a commit");
    return End();
  }
  checker_->OnTurn(run_->state());
  if (!exit_code) return;
  trace_->Note("coordinator: exits with ", *exit_code, ": ", run_->status().reason());
  last_state_ = run_->state();
  End();
  told_exit_(*exit_code);
}

// ---------------------------------------------------------------- what workers ask for

Connection* CoordinatorHost::Dial(Connection::Worker* worker) {
  if (!alive()) return nullptr;
  if (connections_.size() == kMostConnections) {
    trace_->Violate("the workers have connected ", kMostConnections, " times");
    return nullptr;
  }
  connections_.push_back(std::make_unique<Connection>(queue_, random_, worker, this, &peers_));
  return connections_.back().get();
}

void CoordinatorHost::OnMessage(const PeerPtr& peer, WorkerMessage message) {
  if (trace_->verbose() && !message.has_heartbeat()) {
    trace_->Note("  to coordinator: ", DescribeMessage(message));
  }
  if (mutation_ != Mutation::kNone) message = Mutate(std::move(message));
  run_->OnMessage(peer, std::move(message));
  WakeWithin(random_->Between(absl::Microseconds(50), absl::Milliseconds(2)));
}

void CoordinatorHost::OnClosed(const PeerPtr& peer) {
  run_->OnClosed(peer);
  WakeWithin(random_->Between(absl::Microseconds(50), absl::Milliseconds(2)));
}

bool CoordinatorHost::OnSent(const CoordinatorMessage& message) {
  if (disk_.died()) return false;
  if (trace_->verbose()) trace_->Note("  from coordinator: ", DescribeMessage(message));
  checker_->OnSent(life_, message);
  return true;
}

void CoordinatorHost::PutState(StoredStatePtr state, std::function<void(absl::Status)> reply) {
  if (!alive()) return reply(absl::UnavailableError("nobody listens"));
  if (mutation_ == Mutation::kNoFencing) {
    StoredState taken = *state;
    taken.generation = run_->state().generation().generation();
    state = std::make_shared<const StoredState>(std::move(taken));
  }
  // The rpc ends in its own time, or with the coordinator.
  const auto replied = std::make_shared<bool>(false);
  run_->OnState(std::move(state), [this, replied, reply](const absl::Status& status) {
    queue_->After(random_->Between(absl::Microseconds(100), absl::Milliseconds(5)),
                  [replied, reply, status] {
                    if (!std::exchange(*replied, true)) reply(status);
                  });
  });
  WakeWithin(random_->Between(absl::Microseconds(50), absl::Milliseconds(2)));
  queue_->After(absl::Seconds(4), [replied, reply] {
    if (!std::exchange(*replied, true)) reply(absl::UnavailableError("no answer came"));
  });
}

absl::StatusOr<StoredStatePtr> CoordinatorHost::GetState(uint64_t generation,
                                                         const std::string& digest) const {
  if (!alive()) return absl::UnavailableError("nobody listens");
  if (const absl::Status current = run_->CheckGeneration(run_->run_id(), generation);
      !current.ok()) {
    return current;
  }
  return run_->states().Find(digest);
}

// ---------------------------------------------------------------- what is broken on purpose

WorkerMessage CoordinatorHost::Mutate(WorkerMessage message) const {
  if (mutation_ == Mutation::kNoFencing) {
    message.set_generation(run_->state().generation().generation());
    if (message.has_standing()) message.mutable_standing()->set_generation(message.generation());
  }
  if (mutation_ == Mutation::kRecordsFromIgnored && message.has_standing()) {
    message.mutable_standing()->set_records_from(0);
  }
  if (mutation_ == Mutation::kNoDeduplication && message.has_records()) {
    Relabel(message.mutable_records());
  }
  return message;
}

// Those that are known already are made out to be the next ones.
void CoordinatorHost::Relabel(StepRecords* records) const {
  const Ledger& ledger = run_->state().ledger();
  uint64_t next = ledger.size();
  for (GlobalRecord& record : *records->mutable_records()) {
    const uint64_t index =
        ledger.timeline().IndexOf({record.epoch(), record.step(), record.evaluation()});
    if (index < next && next < ledger.timeline().end()) {
      record = ChainRecord(scenario_.config, next, record.loss_sum_quanta());
    }
    ++next;
  }
}

// ---------------------------------------------------------------- in words

namespace {

std::string Place(const Position& position) {
  if (position.phase() == Position::DONE) return "the end";
  return absl::StrCat(position.epoch(), "/", position.step());
}

std::string Short(uint64_t incarnation) {
  return absl::StrCat(absl::Hex(incarnation >> 48, absl::kZeroPad4));
}

}  // namespace

std::string DescribeMessage(const CoordinatorMessage& message) {
  const std::string start = absl::StrCat("generation ", message.generation(), " ");
  if (message.has_welcome()) {
    return absl::StrCat(start, "Welcome, ", message.welcome().recognised() ? "" : "not ",
                        "recognised, ", message.welcome().records_received(), " records");
  }
  if (message.has_assignment()) {
    const Assignment& assignment = message.assignment();
    return absl::StrCat(start, "Assignment, rank ", assignment.rank(), " of ",
                        assignment.world_size(), ", at ", Place(assignment.position()), ", state ",
                        assignment.state_digest(), assignment.hand_in_state() ? " to hand in" : "",
                        ", ", assignment.records_received(), " records");
  }
  if (message.has_ack()) return absl::StrCat(start, "Ack ", message.ack().records_received());
  if (message.has_abort()) return absl::StrCat(start, "Abort: ", message.abort().reason());
  if (message.has_end()) return absl::StrCat(start, "End: ", message.end().reason());
  return absl::StrCat(start, "Regroup: ", message.regroup().reason());
}

std::string DescribeMessage(const WorkerMessage& message) {
  const std::string start = absl::StrCat("generation ", message.generation(), " ");
  if (message.has_hello()) {
    return absl::StrCat(start, "Hello of ", message.hello().node_id(), ".",
                        message.hello().local_rank(), " (", Short(message.hello().incarnation()),
                        ")");
  }
  if (message.has_standing()) {
    const Standing& standing = message.standing();
    return absl::StrCat(start, "Standing at ", Place(standing.position()), " of generation ",
                        standing.generation(), ", state ", standing.state_digest(),
                        ", records from ", standing.records_from(), " ", standing.reason());
  }
  if (message.has_records()) {
    const GlobalRecord& first = message.records().records(0);
    return absl::StrCat(start, "Records from ", first.epoch(), "/",
                        first.evaluation() ? "evaluation" : absl::StrCat(first.step()), ": ",
                        message.records().records_size());
  }
  if (message.has_heartbeat()) {
    return absl::StrCat(start, "Heartbeat at ", Place(message.heartbeat().position()));
  }
  if (message.has_finished()) {
    return absl::StrCat(start, "Finished with ", message.finished().state_digest());
  }
  return absl::StrCat(start, message.has_leaving() ? "Leaving" : "Failure");
}

}  // namespace ringmaster
