// Ledger: which generation computed which record on the way to the final weights, checked against
// the plan.
//
// The counts and digests in a record were measured where the ranks gathered the pixels; what they
// must be is worked out here, from the configuration alone. A step must have gathered the samples
// of its batch, an epoch every training sample exactly once, an evaluation every test sample.
//
// The records on the ledger are the lineage of the state that training goes on from. When a
// generation goes on from an earlier position (everybody was lost, and a checkpoint was taken up),
// the records behind it are taken off again: that work is redone, and counted once. A record is
// *committed* when a state that holds it is known to be the one training goes on from: what a
// generation resumed from, a verified checkpoint, or the end.
//
// Thread safety: none; a plain value. Positions and indices are counts of records
// (common/timeline.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/sampling_plan.h"
#include "common/timeline.h"
#include "coordinator/run_history.h"
#include "proto/journal.pb.h"
#include "proto/training.pb.h"

namespace ringmaster {

// Where the generations that led to the present state went on from.
class Lineage {
 public:
  struct Resumption {
    uint64_t generation = 0;
    uint64_t position = 0;
  };

  // The state at `base` is where the run begins: of generation 0.
  explicit Lineage(uint64_t base = 0) : resumptions_{{0, base}} {}

  // `generation`, above all former ones, goes on from `position`: what was done behind it is not of
  // the lineage any more.
  void Resume(uint64_t generation, uint64_t position);
  // Whether a state at `position`, computed by `generation`, lies on the lineage: it is the state
  // that training has passed through, or is ahead of it.
  bool Contains(uint64_t generation, uint64_t position) const;
  // The generation that computed record `index`.
  uint64_t GenerationOf(uint64_t index) const;
  // Oldest first; generations grow, and positions do not go back.
  const std::vector<Resumption>& resumptions() const { return resumptions_; }

 private:
  std::vector<Resumption> resumptions_;
};

class Ledger {
 public:
  // `config` has samples in both splits, a global batch and epochs. Records before `base` are of
  // the run that this one was begun from: they are not here, and not audited.
  explicit Ledger(const TrainingConfig& config, uint64_t base = 0);
  // What Snapshot() kept. INVALID_ARGUMENT if it cannot be of this configuration.
  static absl::StatusOr<Ledger> FromSnapshot(const TrainingConfig& config,
                                             const LedgerSnapshot& snapshot);
  LedgerSnapshot Snapshot() const;

  // Takes the next record: true. False, and nothing is changed, for one that is here already.
  //   INVALID_ARGUMENT  malformed, or a record between is missing
  //   DATA_LOSS         other samples were gathered than planned
  //   OUT_OF_RANGE      a loss was not finite
  // Messages name epoch, step, wanted and got. After an error nothing was taken.
  absl::StatusOr<bool> Add(const GlobalRecord& record);

  // `generation`, above all former ones, goes on from `position`. Records behind it come off. It
  // may lie ahead of size(): the records between are with the workers and come first.
  void Resume(uint64_t generation, uint64_t position);
  // Everything before `position` is held by a state that will not be lost. Not beyond size().
  void Commit(uint64_t position);
  const Lineage& lineage() const { return lineage_; }
  const Timeline& timeline() const { return timeline_; }
  uint64_t base() const { return base_; }
  uint64_t size() const { return base_ + entries_.size(); }  // one past the last record
  uint64_t committed() const { return committed_; }
  bool complete() const { return size() == timeline_.end(); }
  // Records that were taken off, to be computed again.
  uint64_t redone() const { return redone_; }
  // Training samples of the records here, and what the whole run (from `base` on) amounts to.
  uint64_t samples() const { return samples_; }
  uint64_t samples_expected() const { return samples_expected_; }

  // Record `index` without its times. `index` is in [base(), size()).
  GlobalRecord At(uint64_t index) const;
  // What the records add up to.
  RunHistory History() const;

  struct Result {
    // Training samples that are missing or too many, by the counts of each epoch.
    uint64_t lost = 0;
    uint64_t doubled = 0;
    // OK, or DATA_LOSS naming the first record that is missing or the first epoch whose samples are
    // not the training set (of an epoch begun in another run, its rest) and the test set, each
    // once.
    absl::Status status;
  };
  // Goes through the whole lineage anew, from nothing but its entries and the plan.
  Result Audit() const;

 private:
  struct Entry {
    uint64_t loss_sum_quanta = 0;
    uint64_t sample_digest = 0;
    uint32_t samples = 0;
    uint32_t correct = 0;
    double epoch_seconds = 0;
  };
  absl::Status CheckForm(const GlobalRecord& record) const;
  absl::Status CheckSamples(const GlobalRecord& record);
  const Permutation& OrderOf(uint32_t epoch);
  void Append(const GlobalRecord& record);
  void TakeOff(uint64_t position);
  absl::Status AuditEpoch(uint32_t epoch, Result* result) const;

  Timeline timeline_;
  SamplingPlan plan_;
  uint32_t num_test_samples_;
  uint64_t test_digest_;  // of all test samples
  uint64_t base_;
  uint64_t samples_expected_ = 0;
  uint64_t committed_ = 0;
  uint64_t redone_ = 0;
  uint64_t samples_ = 0;
  std::vector<Entry> entries_;
  Lineage lineage_;
  // Making one costs eight Philox rounds, so the last one asked for is kept.
  uint32_t order_epoch_ = 0;
  Permutation order_;
};

// "epoch 3, step 120", "evaluation after epoch 3" or "the end": the next thing to do at `position`.
std::string DescribePosition(const Timeline& timeline, uint64_t position);

// The two forms of a position. FromProto: INVALID_ARGUMENT if it is not one of the timeline.
Position ToProto(const Timeline& timeline, uint64_t position);
absl::StatusOr<uint64_t> FromProto(const Timeline& timeline, const Position& position);

}  // namespace ringmaster
