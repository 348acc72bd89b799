// RunState: what a coordinator must know to go on where another one died.
//
// It is what applying journal entries in order amounts to, and nothing else changes it: a
// coordinator that runs applies an entry and appends it to its journal; one that starts applies
// what the journal holds. So both end with the same state.
//
// Thread safety: none; a plain value. Reads no clock.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/ledger.h"
#include "coordinator/report.h"
#include "proto/journal.pb.h"

namespace ringmaster {

class RunState {
 public:
  // A run that begins; with `base`, from a checkpoint of another run.
  RunState(std::string run_id, std::string version, const TrainingConfig& config,
           absl::Time started, uint64_t base = 0);
  // From the first entry of a journal. INVALID_ARGUMENT if it is no snapshot, or not a whole one.
  static absl::StatusOr<RunState> FromSnapshot(const JournalEntry& entry);
  JournalEntry Snapshot() const;

  // Takes an entry other than a snapshot. INVALID_ARGUMENT if it cannot follow what is here: the
  // journal is not one of this program's.
  absl::Status Apply(const JournalEntry& entry);
  // The same for one record of a RecordsTaken: as Ledger::Add, which tells whether it is new.
  absl::StatusOr<bool> Take(const GlobalRecord& record, absl::Time now);

  const std::string& run_id() const { return run_id_; }
  const std::string& version() const { return version_; }
  const TrainingConfig& config() const { return config_; }
  absl::Time started() const { return started_; }
  const Ledger& ledger() const { return ledger_; }
  // The last generation formed; its number is 0 before the first.
  const GenerationFormed& generation() const { return generation_; }
  // Whether it has failed: its members are not at work any more.
  bool broken() const { return broken_; }
  uint32_t coordinator_starts() const { return coordinator_starts_; }
  // Generations that failed, how many of them in a row without a step, and why the first of those.
  uint32_t failures() const { return failures_; }
  uint32_t fruitless_failures() const { return fruitless_failures_; }
  const std::string& first_cause() const { return first_cause_; }
  // When the epoch in hand, or the next one, began.
  absl::Time epoch_began() const { return epoch_began_; }
  const std::vector<double>& recoveries_seconds() const { return recoveries_seconds_; }
  const std::optional<RunEnded>& ended() const { return ended_; }

 private:
  absl::Status ApplyFormed(const GenerationFormed& formed);
  absl::Status ApplyBroken(const GenerationBroken& broken);

  std::string run_id_;
  std::string version_;
  TrainingConfig config_;
  absl::Time started_;
  Ledger ledger_;
  GenerationFormed generation_;
  bool broken_ = false;
  uint32_t coordinator_starts_ = 0;
  uint32_t failures_ = 0;
  uint32_t fruitless_failures_ = 0;
  std::string first_cause_;
  std::vector<double> recoveries_seconds_;
  absl::Time epoch_began_;
  std::optional<RunEnded> ended_;
};

// What a report says of the run so far, but for its outcome and places.
void FillReport(const RunState& state, RunReport* report);

}  // namespace ringmaster
