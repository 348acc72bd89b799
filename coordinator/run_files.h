// RunFiles: what a run keeps in its directory to outlive its coordinator: the lock, the journal and
// the checkpoints.
//
// Thread safety: for main().
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/settings.h"
#include "coordinator/checkpoint_store.h"
#include "coordinator/journal.h"
#include "coordinator/run.h"
#include "coordinator/run_lock.h"
#include "coordinator/run_state.h"
#include "coordinator/state_store.h"

namespace ringmaster {

struct RunFiles {
  RunLock lock;
  std::unique_ptr<FileJournal> journal;
  // What the journal amounts to, up to its snapshot, and what came since.
  RunState at_snapshot;
  std::vector<JournalEntry> since;
  RunState state;         // with all of that
  StoredStatePtr stored;  // the newest checkpoint that verifies and lies on the lineage; or null
};

// Opens the run in `run_dir`, or begins one there with `config`.
//   FAILED_PRECONDITION  another coordinator leads it
//   INVALID_ARGUMENT     the run there, or the checkpoint of --resume FILE, was made with other
//                        settings or data; the message has both
//   DATA_LOSS            the journal or the checkpoint of --resume FILE is damaged
absl::StatusOr<RunFiles> OpenRunFiles(const Settings& settings, const TrainingConfig& config,
                                      const std::string& version, const std::string& run_dir,
                                      absl::Time now);

// A writer of checkpoints under `run_dir`. `on_lineage`: whether a state may still be gone on with;
// only those count for retention. It is asked from the writer's thread and must outlive the writer.
absl::StatusOr<std::unique_ptr<StateWriter>> MakeCheckpointWriter(
    const std::string& run_dir, const RunState& state,
    std::function<bool(uint64_t generation, uint64_t position)> on_lineage);

}  // namespace ringmaster
