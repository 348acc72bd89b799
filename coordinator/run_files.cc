#include "coordinator/run_files.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/checkpoint.h"
#include "common/identity.h"
#include "common/status_macros.h"
#include "coordinator/run_config.h"
#include "spdlog/spdlog.h"

namespace ringmaster {
namespace {

std::string CheckpointDirectory(const std::string& run_dir) { return run_dir + "/checkpoints"; }

std::string NewRunId(absl::Time now) {
  return absl::StrCat(absl::FormatTime("%Y%m%d-%H%M%S", now, absl::UTCTimeZone()), "-",
                      absl::Hex(static_cast<uint32_t>(RandomId()), absl::kZeroPad8));
}

StoredStatePtr ToStored(const Timeline& timeline, Checkpoint checkpoint) {
  StoredState stored;
  stored.generation = checkpoint.generation;
  stored.position = ToProto(timeline, checkpoint.position);
  stored.digest = checkpoint.state_digest;
  stored.state = std::move(checkpoint.state);
  return std::make_shared<const StoredState>(std::move(stored));
}

// The run whose journal has these entries.
absl::StatusOr<RunState> Replay(const RunState& at_snapshot,
                                const std::vector<JournalEntry>& since) {
  RunState state = at_snapshot;
  for (const JournalEntry& entry : since) RM_RETURN_IF_ERROR(state.Apply(entry));
  return state;
}

absl::StatusOr<JournalEntry> Parse(const std::string& bytes) {
  JournalEntry entry;
  if (entry.ParseFromString(bytes)) return entry;
  return absl::DataLossError("the journal has an entry that is not one of this program's");
}

absl::Status CheckSameRecipe(const RunState& state, const TrainingConfig& config,
                             const std::string& run_dir) {
  Checkpoint where;  // of which only the recipe counts
  where.recipe = RecipeOf(state.config());
  where.position = state.ledger().base();
  const absl::Status same = CheckCompatible(where, RecipeOf(config));
  if (same.ok() && state.config().epochs() == config.epochs()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the run in ", run_dir, " was begun with other settings: ",
      same.ok() ? absl::StrCat("--epochs ", state.config().epochs(), ", now ", config.epochs())
                : std::string(same.message())));
}

// The newest checkpoint that training could go on from.
StoredStatePtr LoadStored(const std::string& run_dir, const RunState& state) {
  CheckpointStore::Options options;
  options.directory = CheckpointDirectory(run_dir);
  const auto store = CheckpointStore::Open(options);
  if (!store.ok()) {
    spdlog::warn("no checkpoint can be read: {}", std::string(store.status().message()));
    return nullptr;
  }
  std::vector<std::string> notes;
  auto loaded = (*store)->LoadNewest(
      [&state](uint64_t generation, uint64_t position) {
        return position <= state.ledger().size() &&
               state.ledger().lineage().Contains(generation, position);
      },
      &notes);
  for (const std::string& note : notes) spdlog::warn("{}", note);
  if (!loaded.ok()) return nullptr;
  spdlog::info("the newest good checkpoint is {}", loaded->path);
  return ToStored(state.ledger().timeline(), std::move(loaded->checkpoint));
}

absl::StatusOr<Checkpoint> LoadBase(const std::string& path, const TrainingConfig& config) {
  auto checkpoint = LoadCheckpoint(path);
  if (absl::IsNotFound(checkpoint.status())) {
    return absl::InvalidArgumentError(
        absl::StrCat("--resume ", path, ": there is no such file (auto and never are the others)"));
  }
  RM_RETURN_IF_ERROR(checkpoint.status());
  if (const absl::Status fits = CheckCompatible(*checkpoint, RecipeOf(config)); !fits.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--resume ", path, ": ", std::string(fits.message())));
  }
  return checkpoint;
}

class CheckpointWriter final : public StateWriter {
 public:
  CheckpointWriter(std::unique_ptr<CheckpointStore> store, const RunState& state)
      : store_(std::move(store)),
        run_id_(state.run_id()),
        recipe_(RecipeOf(state.config())),
        timeline_(state.ledger().timeline()) {}

  void Write(StoredStatePtr state, bool required,
             std::function<void(absl::StatusOr<std::string>)> done) override {
    Checkpoint checkpoint;
    checkpoint.run_id = run_id_;
    checkpoint.generation = state->generation;
    checkpoint.position = FromProto(timeline_, state->position).value_or(0);
    checkpoint.recipe = recipe_;
    checkpoint.state = state->state;
    checkpoint.state_digest = state->digest;
    store_->Write(std::move(checkpoint),
                  required ? CheckpointStore::Kind::kRequired : CheckpointStore::Kind::kPeriodic,
                  std::move(done));
  }

 private:
  const std::unique_ptr<CheckpointStore> store_;
  const std::string run_id_;
  const TrainingRecipe recipe_;
  const Timeline timeline_;
};

}  // namespace

absl::StatusOr<RunFiles> OpenRunFiles(const Settings& settings, const TrainingConfig& config,
                                      const std::string& version, const std::string& run_dir,
                                      absl::Time now) {
  RM_ASSIGN_OR_RETURN(RunLock lock, RunLock::Take(run_dir));
  std::vector<std::string> entries;
  std::string note;
  RM_ASSIGN_OR_RETURN(auto journal, FileJournal::Open(run_dir + "/journal", &entries, &note));
  if (!note.empty()) spdlog::warn("{}", note);
  if (!entries.front().empty()) {
    RM_ASSIGN_OR_RETURN(const JournalEntry snapshot, Parse(entries.front()));
    RM_ASSIGN_OR_RETURN(RunState at_snapshot, RunState::FromSnapshot(snapshot));
    std::vector<JournalEntry> since;
    for (size_t i = 1; i < entries.size(); ++i) {
      RM_ASSIGN_OR_RETURN(since.emplace_back(), Parse(entries[i]));
    }
    RM_ASSIGN_OR_RETURN(RunState state, Replay(at_snapshot, since));
    RM_RETURN_IF_ERROR(CheckSameRecipe(state, config, run_dir));
    StoredStatePtr stored = LoadStored(run_dir, state);
    return RunFiles{std::move(lock),  std::move(journal), std::move(at_snapshot),
                    std::move(since), std::move(state),   std::move(stored)};
  }
  StoredStatePtr stored;
  uint64_t base = 0;
  if (settings.resume != "auto" && settings.resume != "never") {
    RM_ASSIGN_OR_RETURN(Checkpoint checkpoint, LoadBase(settings.resume, config));
    base = checkpoint.position;
    checkpoint.generation = 0;
    stored = ToStored(RecipeOf(config).timeline(), std::move(checkpoint));
  }
  RunState state(NewRunId(now), version, config, now, base);
  RM_RETURN_IF_ERROR(journal->Rotate(state.Snapshot().SerializeAsString()));
  return RunFiles{std::move(lock), std::move(journal), state, {}, state, std::move(stored)};
}

absl::StatusOr<std::unique_ptr<StateWriter>> MakeCheckpointWriter(
    const std::string& run_dir, const RunState& state,
    std::function<bool(uint64_t generation, uint64_t position)> on_lineage) {
  CheckpointStore::Options options;
  options.directory = CheckpointDirectory(run_dir);
  options.registered = std::move(on_lineage);
  RM_ASSIGN_OR_RETURN(auto store, CheckpointStore::Open(std::move(options)));
  return std::make_unique<CheckpointWriter>(std::move(store), state);
}

}  // namespace ringmaster
