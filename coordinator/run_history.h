// RunHistory: what the records of a run add up to, epoch by epoch. Report, progress display, event
// files and status all show these figures, so they are computed in one place.
//
// Losses and accuracies are means over samples, as Keras's are. Thread safety: a plain value.
#pragma once

#include <cstdint>
#include <vector>

#include "proto/training.pb.h"

namespace ringmaster {

// One epoch, as far as it has come.
struct EpochSummary {
  uint32_t steps = 0;    // training steps recorded
  uint64_t samples = 0;  // training samples recorded
  double loss = 0;       // of the training steps so far; 0 before the first
  double accuracy = 0;
  double seconds = 0;      // GlobalRecord.epoch_seconds; 0 until the last training step
  bool evaluated = false;  // the two below are measured
  double val_loss = 0;     // on the test split, after the epoch
  double val_accuracy = 0;
};

class RunHistory {
 public:
  // Takes the next record. Records come in the order of training (coordinator/ledger.h sees to it).
  void Add(const GlobalRecord& record);

  // By epoch, the last one possibly unfinished. Empty before the first record.
  const std::vector<EpochSummary>& epochs() const { return epochs_; }
  // The last epoch that was evaluated; null before.
  const EpochSummary* last_evaluated() const;

  uint64_t steps() const { return steps_; }      // training steps of all epochs
  uint64_t samples() const { return samples_; }  // training samples of all epochs
  // Training samples of the finished epochs over the sum of their seconds; 0 before the first one.
  double samples_per_second() const;

 private:
  std::vector<EpochSummary> epochs_;
  double loss_sum_ = 0;  // of the last epoch, with the next
  uint64_t correct_ = 0;
  uint64_t steps_ = 0;
  uint64_t samples_ = 0;
};

// The sum of the losses in `record`, and their mean (0 without samples).
double LossSum(const GlobalRecord& record);
double MeanLoss(const GlobalRecord& record);
// Correct samples over samples (0 without samples).
double Accuracy(const GlobalRecord& record);

}  // namespace ringmaster
