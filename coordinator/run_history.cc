#include "coordinator/run_history.h"

#include "common/step_tail.h"

namespace ringmaster {
namespace {

double Ratio(double part, uint64_t whole) {
  return whole == 0 ? 0 : part / static_cast<double>(whole);
}

}  // namespace

double LossSum(const GlobalRecord& record) {
  return static_cast<double>(record.loss_sum_quanta()) * tail::kLossQuantum;
}

double MeanLoss(const GlobalRecord& record) { return Ratio(LossSum(record), record.samples()); }

double Accuracy(const GlobalRecord& record) {
  return Ratio(static_cast<double>(record.correct()), record.samples());
}

void RunHistory::Add(const GlobalRecord& record) {
  if (record.epoch() >= epochs_.size()) {
    epochs_.resize(record.epoch() + 1);
    loss_sum_ = 0;
    correct_ = 0;
  }
  EpochSummary& epoch = epochs_[record.epoch()];
  if (record.evaluation()) {
    epoch.evaluated = true;
    epoch.val_loss = MeanLoss(record);
    epoch.val_accuracy = Accuracy(record);
    return;
  }
  loss_sum_ += LossSum(record);
  correct_ += record.correct();
  steps_ += 1;
  samples_ += record.samples();
  epoch.steps += 1;
  epoch.samples += record.samples();
  epoch.loss = Ratio(loss_sum_, epoch.samples);
  epoch.accuracy = Ratio(static_cast<double>(correct_), epoch.samples);
  epoch.seconds = record.epoch_seconds();
}

const EpochSummary* RunHistory::last_evaluated() const {
  for (auto epoch = epochs_.rbegin(); epoch != epochs_.rend(); ++epoch) {
    if (epoch->evaluated) return &*epoch;
  }
  return nullptr;
}

double RunHistory::samples_per_second() const {
  uint64_t samples = 0;
  double seconds = 0;
  for (const EpochSummary& epoch : epochs_) {
    if (epoch.seconds <= 0) continue;
    samples += epoch.samples;
    seconds += epoch.seconds;
  }
  return seconds > 0 ? static_cast<double>(samples) / seconds : 0;
}

}  // namespace ringmaster
