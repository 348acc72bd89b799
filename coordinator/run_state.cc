#include "coordinator/run_state.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace ringmaster {

RunState::RunState(std::string run_id, std::string version, const TrainingConfig& config,
                   absl::Time started, uint64_t base)
    : run_id_(std::move(run_id)),
      version_(std::move(version)),
      config_(config),
      started_(started),
      ledger_(config, base),
      epoch_began_(started) {}

absl::StatusOr<RunState> RunState::FromSnapshot(const JournalEntry& entry) {
  const RunSnapshot& from = entry.snapshot();
  const TrainingConfig& config = from.config();
  if (!entry.has_snapshot() || from.run_id().empty() || config.global_batch() == 0 ||
      config.num_train_samples() == 0 || config.epochs() == 0) {
    return absl::InvalidArgumentError("the journal does not begin with the snapshot of a run");
  }
  RunState state(from.run_id(), from.version(), config,
                 absl::FromUnixMicros(from.started_unix_us()));
  RM_ASSIGN_OR_RETURN(state.ledger_, Ledger::FromSnapshot(config, from.ledger()));
  state.generation_ = from.generation();
  state.broken_ = from.broken();
  state.coordinator_starts_ = from.coordinator_starts();
  state.failures_ = from.failures();
  state.fruitless_failures_ = from.fruitless_failures();
  state.first_cause_ = from.first_cause();
  state.epoch_began_ = absl::FromUnixMicros(from.epoch_began_unix_us());
  state.recoveries_seconds_ = {from.recoveries_seconds().begin(), from.recoveries_seconds().end()};
  if (from.has_ended()) state.ended_ = from.ended();
  return state;
}

JournalEntry RunState::Snapshot() const {
  JournalEntry entry;
  RunSnapshot& to = *entry.mutable_snapshot();
  to.set_run_id(run_id_);
  to.set_version(version_);
  *to.mutable_config() = config_;
  to.set_started_unix_us(absl::ToUnixMicros(started_));
  to.set_coordinator_starts(coordinator_starts_);
  *to.mutable_generation() = generation_;
  to.set_broken(broken_);
  *to.mutable_ledger() = ledger_.Snapshot();
  to.set_failures(failures_);
  to.set_fruitless_failures(fruitless_failures_);
  to.set_first_cause(first_cause_);
  to.set_epoch_began_unix_us(absl::ToUnixMicros(epoch_began_));
  to.mutable_recoveries_seconds()->Add(recoveries_seconds_.begin(), recoveries_seconds_.end());
  if (ended_) *to.mutable_ended() = *ended_;
  return entry;
}

absl::Status RunState::Apply(const JournalEntry& entry) {
  switch (entry.kind_case()) {
    case JournalEntry::kStarted:
      ++coordinator_starts_;
      // An interrupted run is gone on with; a failed one may be tried again.
      if (ended_ && ended_->outcome() != RunEnded::SUCCESS) {
        ended_.reset();
        fruitless_failures_ = 0;
      }
      return absl::OkStatus();
    case JournalEntry::kFormed:
      return ApplyFormed(entry.formed());
    case JournalEntry::kRecords:
      for (const GlobalRecord& record : entry.records().records()) {
        RM_RETURN_IF_ERROR(Take(record, absl::FromUnixMicros(entry.records().unix_us())).status());
      }
      return absl::OkStatus();
    case JournalEntry::kVerified:
      if (ledger_.lineage().Contains(entry.verified().generation(), entry.verified().position())) {
        ledger_.Commit(entry.verified().position());
      }
      return absl::OkStatus();
    case JournalEntry::kBroken:
      return ApplyBroken(entry.broken());
    case JournalEntry::kRecovered:
      recoveries_seconds_.push_back(entry.recovered().seconds());
      return absl::OkStatus();
    case JournalEntry::kEnded:
      ended_ = entry.ended();
      if (ended_->outcome() == RunEnded::SUCCESS) ledger_.Commit(ledger_.size());
      return absl::OkStatus();
    case JournalEntry::kSnapshot:
    case JournalEntry::KIND_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("an entry of a kind that cannot be here");
}

absl::StatusOr<bool> RunState::Take(const GlobalRecord& record, absl::Time now) {
  const absl::StatusOr<bool> is_new = ledger_.Add(record);
  if (is_new.ok() && *is_new && record.evaluation()) epoch_began_ = now;
  return is_new;
}

absl::Status RunState::ApplyFormed(const GenerationFormed& formed) {
  if (formed.generation() <= generation_.generation()) {
    return absl::InvalidArgumentError(
        absl::StrCat("generation ", formed.generation(), " after ", generation_.generation()));
  }
  if (formed.position() < ledger_.base() || formed.position() > ledger_.timeline().end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("generation ", formed.generation(), " goes on at ", formed.position(),
                     " in a run from ", ledger_.base(), " to ", ledger_.timeline().end()));
  }
  if (generation_.generation() == 0) epoch_began_ = absl::FromUnixMicros(formed.unix_us());
  generation_ = formed;
  broken_ = false;
  ledger_.Resume(formed.generation(), formed.position());
  return absl::OkStatus();
}

absl::Status RunState::ApplyBroken(const GenerationBroken& broken) {
  if (broken.generation() != generation_.generation() || broken.generation() == 0) {
    return absl::InvalidArgumentError(absl::StrCat("generation ", broken.generation(),
                                                   " failed, but the last one is ",
                                                   generation_.generation()));
  }
  broken_ = true;
  ++failures_;
  if (broken.progressed() || fruitless_failures_ == 0) {
    fruitless_failures_ = 0;
    first_cause_ = broken.reason();
  }
  ++fruitless_failures_;
  return absl::OkStatus();
}

void FillReport(const RunState& state, RunReport* report) {
  const Ledger& ledger = state.ledger();
  report->run_id = state.run_id();
  report->version = state.version();
  report->started = state.started();
  report->config = state.config();
  report->history = ledger.History();
  report->generations = state.generation().generation();
  report->samples_committed = ledger.samples();
  report->samples_expected = ledger.samples_expected();
  report->failures_survived = state.failures();
  report->coordinator_starts = state.coordinator_starts();
  report->recoveries_seconds = state.recoveries_seconds();
  report->records_redone = ledger.redone();
  report->members.clear();
  for (const Hello& hello : state.generation().members()) {
    Member member;
    member.set_incarnation(hello.incarnation());
    member.set_host(hello.host());
    member.set_pid(hello.pid());
    member.set_device_description(hello.device_description());
    report->members.push_back(std::move(member));
    report->device = hello.device();
  }
  report->world_size = static_cast<uint32_t>(report->members.size());
}

}  // namespace ringmaster
