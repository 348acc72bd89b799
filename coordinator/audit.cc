#include "coordinator/audit.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

uint64_t DigestOfAll(uint32_t count) {
  uint64_t digest = 0;
  for (uint32_t sample = 0; sample < count; ++sample) digest += SampleFingerprint(sample);
  return digest;
}

uint64_t DigestOfBatch(const Permutation& order, PositionRange batch) {
  uint64_t digest = 0;
  for (uint32_t at = batch.first; at < batch.end(); ++at) digest += SampleFingerprint(order(at));
  return digest;
}

std::string Place(uint32_t epoch, uint32_t step, bool evaluation) {
  if (evaluation) return absl::StrCat("evaluation after epoch ", epoch);
  return absl::StrCat("epoch ", epoch, ", step ", step);
}

std::string Place(const GlobalRecord& record) {
  return Place(record.epoch(), record.step(), record.evaluation());
}

bool AllTimes(const google::protobuf::RepeatedField<float>& times) {
  for (const float time : times) {
    if (!std::isfinite(time) || time < 0) return false;
  }
  return true;
}

}  // namespace

Audit::Audit(const TrainingConfig& config)
    : plan_{config.seed(), config.num_train_samples(), config.global_batch()},
      epochs_(config.epochs()),
      num_test_samples_(config.num_test_samples()),
      train_digest_(DigestOfAll(config.num_train_samples())),
      test_digest_(DigestOfAll(config.num_test_samples())),
      order_(plan_.Order(0)) {}

absl::Status Audit::Add(const GlobalRecord& record) {
  RM_RETURN_IF_ERROR(CheckForm(record));
  RM_RETURN_IF_ERROR(CheckOrder(record));
  RM_RETURN_IF_ERROR(CheckSamples(record));
  RM_RETURN_IF_ERROR(CheckEpoch(record));
  if (record.non_finite() > 0) {
    return absl::OutOfRangeError(absl::StrCat(
        Place(record), ": the loss of ", record.non_finite(), " of ", record.samples(),
        " samples is not finite: training has diverged. Try a smaller --learning-rate"));
  }
  Advance(record);
  return absl::OkStatus();
}

absl::Status Audit::CheckForm(const GlobalRecord& record) const {
  if (record.compute_us_size() != record.all_reduce_us_size() ||
      (world_size_ != 0 && record.compute_us_size() != static_cast<int>(world_size_))) {
    return absl::InvalidArgumentError(
        absl::StrCat(Place(record), ": the record has times of ", record.compute_us_size(), " and ",
                     record.all_reduce_us_size(), " ranks, wanted ", world_size_));
  }
  if (!AllTimes(record.compute_us()) || !AllTimes(record.all_reduce_us()) ||
      !std::isfinite(record.epoch_seconds()) || record.epoch_seconds() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(Place(record), ": a time in the record is negative or not finite"));
  }
  return absl::OkStatus();
}

absl::Status Audit::CheckOrder(const GlobalRecord& record) const {
  if (complete()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a record of ", Place(record), " came after the last one of the run"));
  }
  const bool evaluate = next_.phase == Position::EVALUATE;
  const uint32_t step = evaluate ? 0 : next_.step;
  if (record.epoch() != next_.epoch || record.step() != step || record.evaluation() != evaluate) {
    return absl::InvalidArgumentError(
        absl::StrCat("the record of ", Place(record), " came where that of ",
                     Place(next_.epoch, step, evaluate), " was wanted"));
  }
  return absl::OkStatus();
}

absl::Status Audit::CheckSamples(const GlobalRecord& record) const {
  const PositionRange batch =
      record.evaluation() ? PositionRange{0, num_test_samples_} : plan_.Batch(record.step());
  if (record.samples() != batch.count) {
    return absl::DataLossError(absl::StrCat(Place(record), ": the ranks gathered ",
                                            record.samples(), " samples instead of ", batch.count));
  }
  if (record.correct() > record.samples()) {
    return absl::DataLossError(absl::StrCat(Place(record), ": ", record.correct(), " of ",
                                            record.samples(), " samples are said to be correct"));
  }
  const uint64_t wanted = record.evaluation() ? test_digest_ : DigestOfBatch(order_, batch);
  if (record.sample_digest() != wanted) {
    return absl::DataLossError(absl::StrCat(Place(record), ": the ranks gathered ", batch.count,
                                            " samples, but not those of the plan: their digest is ",
                                            absl::Hex(record.sample_digest(), absl::kZeroPad16),
                                            " instead of ", absl::Hex(wanted, absl::kZeroPad16)));
  }
  return absl::OkStatus();
}

// Does not trust the order that the steps were checked against.
absl::Status Audit::CheckEpoch(const GlobalRecord& record) const {
  if (!LastStep(record)) return absl::OkStatus();
  const uint64_t samples = epoch_samples_ + record.samples();
  if (samples == plan_.num_samples && epoch_digest_ + record.sample_digest() == train_digest_) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat("epoch ", record.epoch(), ": the ", samples,
                                          " samples gathered are not the ", plan_.num_samples,
                                          " of the training set, each exactly once"));
}

bool Audit::LastStep(const GlobalRecord& record) const {
  return !record.evaluation() && record.step() + 1 == plan_.steps_per_epoch();
}

void Audit::Advance(const GlobalRecord& record) {
  ++records_;
  if (!record.evaluation()) {
    samples_committed_ += record.samples();
    epoch_samples_ += record.samples();
    epoch_digest_ += record.sample_digest();
    ++next_.step;
    if (LastStep(record)) next_.phase = Position::EVALUATE;
    return;
  }
  epoch_samples_ = 0;
  epoch_digest_ = 0;
  next_ = {next_.epoch + 1, 0, Position::TRAIN};
  if (next_.epoch == epochs_) next_.phase = Position::DONE;
  order_ = plan_.Order(next_.epoch);
}

Position Audit::position() const {
  Position position;
  position.set_epoch(next_.epoch);
  position.set_step(next_.step);
  position.set_phase(next_.phase);
  return position;
}

}  // namespace ringmaster
