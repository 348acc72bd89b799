// A checkpoint: the state of training at one position of a run and all that decides what comes
// after it, as one safetensors file that other programs can open. docs/checkpoints.md has the
// format.
//
// Thread safety: plain values and pure functions, but for LoadCheckpoint, which reads a file; safe
// from any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model.h"
#include "common/safetensors.h"
#include "common/timeline.h"

namespace ringmaster {

// Everything that decides the result of a run.
struct TrainingRecipe {
  ModelSpec model;
  OptimizerSpec optimizer;
  uint64_t seed = 0;
  uint32_t global_batch = 0;  // samples a step, summed over the ranks
  uint32_t epochs = 0;
  uint32_t num_train_samples = 0;
  uint32_t num_test_samples = 0;
  std::string data_digest;  // DatasetDigest of common/dataset.h
  bool reproducible = false;

  // Valid recipes only.
  Timeline timeline() const {
    return {SamplingPlan{seed, num_train_samples, global_batch}.steps_per_epoch(), epochs};
  }
  // INVALID_ARGUMENT: model or optimizer are not valid, or a count is outside [1, 2^31].
  absl::Status Validate() const;
  friend bool operator==(const TrainingRecipe&, const TrainingRecipe&) = default;
};

struct Checkpoint {
  std::string run_id;
  uint64_t generation = 0;  // that computed the state
  uint64_t position = 0;    // of common/timeline.h: the records before the state; at most the end
  TrainingRecipe recipe;
  TrainState state;
  std::string state_digest;  // StateSha256(state)

  // The next thing to do, for people and file names: an evaluation is at step steps_per_epoch, the
  // end of the run at step 0 of the epoch after the last.
  uint32_t epoch() const;
  uint32_t step() const;  // within the epoch

  friend bool operator==(const Checkpoint&, const Checkpoint&) = default;
};

// Returns the file. INVALID_ARGUMENT: the recipe is not valid, or the state is not of its model.
// Whether digest, step and position fit the state is for the reader to find.
absl::StatusOr<std::string> EncodeCheckpoint(const Checkpoint& checkpoint);

// Reads the file back. Safe for bytes from anywhere; what it returns is what was written, to the
// bit. INVALID_ARGUMENT: not a checkpoint, or one of another version. DATA_LOSS: a checkpoint that
// is damaged, or whose parts do not fit each other. The message begins with what is wrong with
// "it", and says what was wanted and got.
absl::StatusOr<Checkpoint> DecodeCheckpoint(std::string_view bytes);

// Whether a file with this metadata claims to be a checkpoint.
bool ClaimsToBeCheckpoint(const SafetensorsMetadata& metadata);

// DecodeCheckpoint of the file at `path`, and its codes; the message names `path`. NOT_FOUND: there
// is no such file. Other errors of the file system keep their code.
absl::StatusOr<Checkpoint> LoadCheckpoint(const std::string& path);

// Whether a run of `wanted` may go on from `checkpoint`. The number of epochs may differ, as long
// as the run does not end before the checkpoint. FAILED_PRECONDITION: not; the message has both
// values of everything that differs, and what to do.
absl::Status CheckCompatible(const Checkpoint& checkpoint, const TrainingRecipe& wanted);

}  // namespace ringmaster
