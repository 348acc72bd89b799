// Audit: checks that the records of a run add up to exactly what was planned.
//
// The counts and digests in a record were measured where the ranks gathered the pixels; what they
// must be is worked out here, from the configuration alone. A step must have gathered the samples
// of its batch, an epoch every training sample exactly once, an evaluation every test sample.
//
// Thread safety: none; for one thread at a time.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "common/sampling_plan.h"
#include "proto/training.pb.h"

namespace ringmaster {

class Audit {
 public:
  // `config` has samples in both splits, a global batch and epochs.
  explicit Audit(const TrainingConfig& config);

  // Takes the next record.
  //   INVALID_ARGUMENT  malformed, or not the record that comes next (a gap, a duplicate)
  //   DATA_LOSS         other samples were gathered than planned
  //   OUT_OF_RANGE      a loss was not finite
  // Messages name epoch, step, wanted and got. After an error nothing was taken.
  absl::Status Add(const GlobalRecord& record);

  // From now on each record carries the times of so many ranks.
  void SetWorldSize(uint32_t world_size) { world_size_ = world_size; }

  // The next thing to be done; DONE when every record has been taken.
  Position position() const;
  bool complete() const { return next_.phase == Position::DONE; }

  uint64_t records() const { return records_; }
  // Training samples: counted from the records, and what the whole run amounts to.
  uint64_t samples_committed() const { return samples_committed_; }
  uint64_t samples_expected() const { return uint64_t{plan_.num_samples} * epochs_; }

 private:
  struct Next {
    uint32_t epoch = 0;
    uint32_t step = 0;
    Position::Phase phase = Position::TRAIN;
  };

  absl::Status CheckForm(const GlobalRecord& record) const;
  absl::Status CheckOrder(const GlobalRecord& record) const;
  absl::Status CheckSamples(const GlobalRecord& record) const;
  absl::Status CheckEpoch(const GlobalRecord& record) const;
  bool LastStep(const GlobalRecord& record) const;
  void Advance(const GlobalRecord& record);

  const SamplingPlan plan_;
  const uint32_t epochs_;
  const uint32_t num_test_samples_;
  const uint64_t train_digest_;  // of all training samples
  const uint64_t test_digest_;
  uint32_t world_size_ = 0;  // 0: not settled
  Next next_;
  Permutation order_;           // of the epoch in next_
  uint64_t epoch_samples_ = 0;  // gathered in this epoch so far
  uint64_t epoch_digest_ = 0;
  uint64_t records_ = 0;
  uint64_t samples_committed_ = 0;
};

}  // namespace ringmaster
