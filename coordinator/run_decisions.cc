// What Run does about what Membership decides: it forms generations, interrupts and ends the run.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/subprocess.h"
#include "coordinator/run.h"
#include "spdlog/spdlog.h"

namespace ringmaster {

void Run::Decide() {
  const Membership::Decision decision = membership_.Decide(now_);
  if (decision.broken) OnBroken(*decision.broken);
  if (decision.abort) {
    CoordinatorMessage message;
    message.mutable_abort()->set_reason(membership_.reason());
    SendToMembers(message);
    keys_.Begin(0);  // who waits for a key of that generation waits in vain
  }
  CloseGone();
  if (membership_.phase() == Membership::Phase::kFailed) {
    return End(RunOutcome::kFailed, 1, membership_.reason());
  }
  if (membership_.phase() == Membership::Phase::kFinished) return Conclude();
  if (const Session* session = decision.regroup ? SessionOf(*decision.regroup) : nullptr) {
    CoordinatorMessage message;
    message.mutable_regroup()->set_reason(interruption_ ? "the run is being interrupted"
                                                        : "others wait to be taken in");
    Send(session->peer, std::move(message));
  }
  if (interruption_) return DecideInterruption();
  if (decision.can_form) FormGeneration();
  if (membership_.phase() == Membership::Phase::kFailed) {
    return End(RunOutcome::kFailed, 1, membership_.reason());
  }
  if (membership_.reason() != std::exchange(logged_reason_, membership_.reason())) {
    spdlog::info("{}", membership_.reason());
  }
}

void Run::OnBroken(const Membership::Broken& broken) {
  if (!broken_at_) broken_at_ = broken.noticed;
  spdlog::warn("generation {}: {}", generation(), broken.reason);
  JournalEntry entry;
  GenerationBroken* told = entry.mutable_broken();
  told->set_generation(generation());
  told->set_reason(broken.reason);
  told->set_progressed(broken.progressed);
  Record(std::move(entry));
}

// Whoever the run has gone on without is told so, and may join anew.
void Run::CloseGone() {
  for (auto at = sessions_.begin(); at != sessions_.end();) {
    const MemberId member = at->second.member;
    if (membership_.Contains(member)) {
      ++at;
      continue;
    }
    at->second.peer->Close(
        absl::AbortedError(absl::StrCat("put out: ", membership_.WhyGone(member))));
    at = sessions_.erase(at);
  }
}

absl::StatusOr<RecoveryPlan> Run::Plan(const std::vector<MemberId>& candidates) const {
  const Timeline& timeline = state_.ledger().timeline();
  std::vector<std::pair<MemberId, std::optional<StateOffer>>> members;
  for (const MemberId id : candidates) {
    const std::optional<Standing>& standing = membership_.standing(id);
    std::optional<StateOffer> offer;
    if (standing && standing->generation() > 0) {
      RM_ASSIGN_OR_RETURN(const uint64_t position, FromProto(timeline, standing->position()));
      offer = StateOffer{standing->generation(), position,
                         std::min(position, standing->records_from()), standing->state_digest()};
    }
    members.push_back({id, std::move(offer)});
  }
  std::optional<StateOffer> stored;
  if (stored_ != nullptr) {
    RM_ASSIGN_OR_RETURN(const uint64_t position, FromProto(timeline, stored_->position));
    stored = StateOffer{stored_->generation, position, position, stored_->digest};
  }
  return PlanRecovery(state_.ledger(), members, stored);
}

void Run::FormGeneration() {
  const absl::StatusOr<RecoveryPlan> plan = Plan(membership_.Candidates());
  if (!plan.ok()) return membership_.Fail(std::string(plan.status().message()));
  membership_.Form(now_, plan->holder);
  JournalEntry entry;
  GenerationFormed* formed = entry.mutable_formed();
  formed->set_generation(generation());
  formed->set_position(plan->position);
  formed->set_unix_us(absl::ToUnixMicros(now_));
  for (const MemberId id : membership_.ranks()) *formed->add_members() = membership_.hello(id);
  const uint64_t redone = state_.ledger().redone();
  Record(std::move(entry));
  if (state_.ledger().redone() != redone && outputs_ != nullptr) {
    outputs_->Rewind(state_.ledger().History(), state_.epoch_began());
  }
  if (generation() > 1) {
    spdlog::info("generation {} goes on at {}, {}", generation(),
                 DescribePosition(state_.ledger().timeline(), plan->position), plan->reason);
  }
  seen_position_ = plan->position;
  steps_in_generation_ = 0;
  waiting_.reset();
  keys_.Begin(generation());
  // Newer ones, of what was lost, may have taken its place.
  if (stored_ != nullptr && stored_->digest == plan->digest) states_.Put(stored_);
  if (states_.Find(plan->digest) != nullptr) {
    keys_.Set(generation(), StateKey(plan->digest), "").IgnoreError();
  }
  Assign(*plan);
}

void Run::Assign(const RecoveryPlan& plan) {
  const std::vector<MemberId>& ranks = membership_.ranks();
  Assignment assignment;
  assignment.set_world_size(static_cast<uint32_t>(ranks.size()));
  *assignment.mutable_position() = ToProto(state_.ledger().timeline(), plan.position);
  assignment.set_state_digest(plan.digest);
  assignment.set_records_received(state_.ledger().size());
  assignment.set_device(membership_.hello(ranks.front()).device());
  assignment.set_communicator_timeout_ms(
      static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.communicator_timeout)));
  FillReport(state_, &report_);
  for (const Member& member : report_.members) *assignment.add_members() = member;
  const bool hand_in = plan.holder && plan.must_serve && states_.Find(plan.digest) == nullptr;
  for (uint32_t rank = 0; rank < ranks.size(); ++rank) {
    const Session* session = SessionOf(ranks[rank]);
    if (session == nullptr) continue;  // gone in this very turn: its loss comes next
    assignment.set_rank(rank);
    assignment.set_hand_in_state(hand_in && rank == 0);
    CoordinatorMessage message;
    *message.mutable_assignment() = assignment;
    Send(session->peer, std::move(message));
  }
}

// Once all have stopped and what they hold is on the disk, or time is up.
void Run::DecideInterruption() {
  const bool idle = membership_.phase() == Membership::Phase::kGathering && membership_.AllStand();
  if (!(idle && InterruptionIsSafe()) && now_ < interruption_->deadline) return;
  const Ledger& ledger = state_.ledger();
  End(RunOutcome::kInterrupted, ExitCodeForSignal(interruption_->signal),
      absl::StrCat("the run was stopped by ", SignalName(interruption_->signal), " at ",
                   DescribePosition(ledger.timeline(), ledger.size()), "; it can be gone on with ",
                   verified_ > 0
                       ? absl::StrCat("from ", DescribePosition(ledger.timeline(), verified_))
                       : "from the beginning"));
}

// Whether the furthest state that a member holds is on the disk.
bool Run::InterruptionIsSafe() const {
  const auto plan = Plan(membership_.Candidates());
  return !plan.ok() || plan->position <= verified_ || writer_ == nullptr;
}

void Run::Conclude() {
  const Ledger::Result audit = state_.ledger().Audit();
  report_.lost_samples = audit.lost;
  report_.doubled_samples = audit.doubled;
  absl::Status status = audit.status;
  const StoredStatePtr final_state = states_.Find(membership_.state_digest());
  if (status.ok() && final_state == nullptr) {
    status = absl::DataLossError("all workers finished, but the final state did not come");
  }
  if (status.ok()) {
    const std::vector<float>& parameters = final_state->state.parameters;
    report_.weights_sha256 = WeightsSha256(parameters);
    if (outputs_ != nullptr) status = outputs_->SaveFinalWeights(parameters);
  }
  if (status.ok()) return End(RunOutcome::kSuccess, 0, "");
  End(RunOutcome::kFailed, 1, std::string(status.message()));
}

void Run::End(RunOutcome outcome, int exit_code, const std::string& reason) {
  if (outcome == RunOutcome::kFailed) spdlog::error("the run failed: {}", reason);
  if (outcome == RunOutcome::kInterrupted) spdlog::warn("{}", reason);
  JournalEntry entry;
  RunEnded* ended = entry.mutable_ended();
  ended->set_outcome(outcome == RunOutcome::kSuccess       ? RunEnded::SUCCESS
                     : outcome == RunOutcome::kInterrupted ? RunEnded::INTERRUPTED
                                                           : RunEnded::FAILED);
  ended->set_reason(reason);
  ended->set_weights_sha256(report_.weights_sha256);
  ended->set_unix_us(absl::ToUnixMicros(now_));
  Record(std::move(entry));
  report_.outcome = outcome;
  report_.reason = reason;
  report_.ended = now_;
  FillReport(state_, &report_);
  outbox_.clear();  // what could not be made durable is not told any more
  Ending ending{exit_code, now_ + options_.farewell, {}};
  CoordinatorMessage& message = ending.message;
  message.mutable_end()->set_exit_code(exit_code == 0 ? 0 : 1);
  message.mutable_end()->set_reason(outcome == RunOutcome::kSuccess ? "training is done" : reason);
  if (exit_code != 0) {  // the workers need not wait for our disk
    Commit();
    SendToMembers(message);
    FlushOutbox();
  }
  if (outputs_ != nullptr) {
    if (const absl::Status status = outputs_->Finish(report_); !status.ok()) {
      spdlog::error("{}", std::string(status.message()));
      if (exit_code == 0) ending.exit_code = 1;
    }
  }
  if (outcome == RunOutcome::kSuccess) SendToMembers(message);
  keys_.Begin(0);
  ending_ = std::move(ending);
}

}  // namespace ringmaster
