#include "coordinator/ledger.h"

#include <algorithm>
#include <cmath>

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

std::string Place(const TimelineEntry& entry) {
  if (entry.evaluation) return absl::StrCat("evaluation after epoch ", entry.epoch);
  return absl::StrCat("epoch ", entry.epoch, ", step ", entry.step);
}

TimelineEntry PlaceOf(const GlobalRecord& record) {
  return {record.epoch(), record.step(), record.evaluation()};
}

bool AllTimes(const google::protobuf::RepeatedField<float>& times) {
  return std::all_of(times.begin(), times.end(),
                     [](float time) { return std::isfinite(time) && time >= 0; });
}

SamplingPlan PlanOf(const TrainingConfig& config) {
  return {config.seed(), config.num_train_samples(), config.global_batch()};
}

bool SameSizes(const LedgerSnapshot& snapshot) {
  const int count = snapshot.samples_size();
  return snapshot.loss_sum_quanta_size() == count && snapshot.sample_digest_size() == count &&
         snapshot.correct_size() == count && snapshot.epoch_seconds_size() == count &&
         snapshot.generations_size() == snapshot.positions_size();
}

// Whether generations grow and positions, from the base to the end, do not go back.
bool IsLineage(const LedgerSnapshot& snapshot, uint64_t end) {
  uint64_t generation = 0;
  uint64_t position = snapshot.base();
  for (int i = 0; i < snapshot.generations_size(); ++i) {
    if (snapshot.generations(i) <= generation || snapshot.positions(i) < position) return false;
    generation = snapshot.generations(i);
    position = snapshot.positions(i);
  }
  return position <= end;
}

}  // namespace

Ledger::Ledger(const TrainingConfig& config, uint64_t base)
    : timeline_(PlanOf(config), config.epochs()),
      plan_(PlanOf(config)),
      num_test_samples_(config.num_test_samples()),
      test_digest_(DigestOfAll(config.num_test_samples())),
      base_(std::min(base, timeline_.end())),
      committed_(base_),
      lineage_(base_),
      order_(plan_.Order(0)) {
  const TimelineEntry first = timeline_.At(base_);  // one past the last epoch at the end
  samples_expected_ = uint64_t{plan_.num_samples} * (config.epochs() - first.epoch);
  if (base_ < timeline_.end()) {
    samples_expected_ -= first.evaluation ? plan_.num_samples : plan_.Batch(first.step).first;
  }
}

absl::StatusOr<Ledger> Ledger::FromSnapshot(const TrainingConfig& config,
                                            const LedgerSnapshot& snapshot) {
  Ledger ledger(config, snapshot.base());
  const int count = snapshot.samples_size();
  const uint64_t end = ledger.timeline_.end();
  if (!SameSizes(snapshot) || !IsLineage(snapshot, end) || snapshot.base() > end ||
      snapshot.base() + count > end || snapshot.committed() > snapshot.base() + count) {
    return absl::InvalidArgumentError(
        absl::StrCat("the ledger in the journal is not of this run: ", count, " records from ",
                     snapshot.base(), " on, ", snapshot.committed(), " committed, ",
                     snapshot.generations_size(), " generations, in a run of ", end));
  }
  for (int i = 0; i < count; ++i) {
    GlobalRecord record;
    const TimelineEntry place = ledger.timeline_.At(ledger.size());
    record.set_epoch(place.epoch);
    record.set_step(place.step);
    record.set_evaluation(place.evaluation);
    record.set_loss_sum_quanta(snapshot.loss_sum_quanta(i));
    record.set_sample_digest(snapshot.sample_digest(i));
    record.set_samples(snapshot.samples(i));
    record.set_correct(snapshot.correct(i));
    record.set_epoch_seconds(snapshot.epoch_seconds(i));
    ledger.Append(record);
  }
  for (int i = 0; i < snapshot.generations_size(); ++i) {
    ledger.lineage_.Resume(snapshot.generations(i), snapshot.positions(i));
  }
  ledger.committed_ = std::max(ledger.base_, snapshot.committed());
  ledger.redone_ = snapshot.redone();
  return ledger;
}

LedgerSnapshot Ledger::Snapshot() const {
  LedgerSnapshot snapshot;
  snapshot.set_base(base_);
  snapshot.set_committed(committed_);
  snapshot.set_redone(redone_);
  for (const Lineage::Resumption& resumption : lineage_.resumptions()) {
    if (resumption.generation == 0) continue;  // the base says it
    snapshot.add_generations(resumption.generation);
    snapshot.add_positions(resumption.position);
  }
  for (const Entry& entry : entries_) {
    snapshot.add_loss_sum_quanta(entry.loss_sum_quanta);
    snapshot.add_sample_digest(entry.sample_digest);
    snapshot.add_samples(entry.samples);
    snapshot.add_correct(entry.correct);
    snapshot.add_epoch_seconds(entry.epoch_seconds);
  }
  return snapshot;
}

absl::StatusOr<bool> Ledger::Add(const GlobalRecord& record) {
  const TimelineEntry place = PlaceOf(record);
  RM_RETURN_IF_ERROR(CheckForm(record));
  const uint64_t index = timeline_.IndexOf(place);
  if (index < size()) return false;
  if (index > size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the record of ", Place(place), " came where that of ", DescribePosition(timeline_, size()),
        " was wanted: the records between are missing"));
  }
  RM_RETURN_IF_ERROR(CheckSamples(record));
  if (record.non_finite() > 0) {
    return absl::OutOfRangeError(absl::StrCat(
        Place(place), ": the loss of ", record.non_finite(), " of ", record.samples(),
        " samples is not finite: training has diverged. Try a smaller --learning-rate"));
  }
  Append(record);
  return true;
}

absl::Status Ledger::CheckForm(const GlobalRecord& record) const {
  const TimelineEntry place = PlaceOf(record);
  if (place.epoch >= timeline_.epochs() || place.step >= timeline_.steps_per_epoch() ||
      (place.evaluation && place.step != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a record of ", Place(place), ", step ", place.step, " in a run of ",
                     timeline_.epochs(), " epochs of ", timeline_.steps_per_epoch(), " steps"));
  }
  if (record.compute_us_size() != record.all_reduce_us_size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(Place(place), ": the record has compute times of ", record.compute_us_size(),
                     " ranks and all-reduce times of ", record.all_reduce_us_size()));
  }
  if (!AllTimes(record.compute_us()) || !AllTimes(record.all_reduce_us()) ||
      !std::isfinite(record.epoch_seconds()) || record.epoch_seconds() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(Place(place), ": a time in the record is negative or not finite"));
  }
  return absl::OkStatus();
}

absl::Status Ledger::CheckSamples(const GlobalRecord& record) {
  const std::string place = Place(PlaceOf(record));
  const PositionRange batch =
      record.evaluation() ? PositionRange{0, num_test_samples_} : plan_.Batch(record.step());
  if (record.samples() != batch.count) {
    return absl::DataLossError(absl::StrCat(place, ": the ranks gathered ", record.samples(),
                                            " samples instead of ", batch.count));
  }
  if (record.correct() > record.samples()) {
    return absl::DataLossError(absl::StrCat(place, ": ", record.correct(), " of ", record.samples(),
                                            " samples are said to be correct"));
  }
  const uint64_t wanted =
      record.evaluation() ? test_digest_ : DigestOfBatch(OrderOf(record.epoch()), batch);
  if (record.sample_digest() != wanted) {
    return absl::DataLossError(absl::StrCat(place, ": the ranks gathered ", batch.count,
                                            " samples, but not those of the plan: their digest is ",
                                            absl::Hex(record.sample_digest(), absl::kZeroPad16),
                                            " instead of ", absl::Hex(wanted, absl::kZeroPad16)));
  }
  return absl::OkStatus();
}

const Permutation& Ledger::OrderOf(uint32_t epoch) {
  if (epoch != order_epoch_) order_ = plan_.Order(epoch);
  order_epoch_ = epoch;
  return order_;
}

void Ledger::Append(const GlobalRecord& record) {
  Entry entry;
  entry.loss_sum_quanta = record.loss_sum_quanta();
  entry.sample_digest = record.sample_digest();
  entry.samples = static_cast<uint32_t>(record.samples());
  entry.correct = static_cast<uint32_t>(record.correct());
  entry.epoch_seconds = record.epoch_seconds();
  if (!record.evaluation()) samples_ += entry.samples;
  entries_.push_back(entry);
}

void Ledger::Resume(uint64_t generation, uint64_t position) {
  TakeOff(position);
  lineage_.Resume(generation, position);
  committed_ = std::min(position, size());
}

void Ledger::TakeOff(uint64_t position) {
  for (; size() > std::max(position, base_); entries_.pop_back()) {
    if (!timeline_.At(size() - 1).evaluation) samples_ -= entries_.back().samples;
    ++redone_;
  }
}

void Ledger::Commit(uint64_t position) {
  committed_ = std::max(committed_, std::min(position, size()));
}

void Lineage::Resume(uint64_t generation, uint64_t position) {
  while (!resumptions_.empty() && resumptions_.back().position > position) resumptions_.pop_back();
  resumptions_.push_back({generation, position});
}

bool Lineage::Contains(uint64_t generation, uint64_t position) const {
  for (size_t i = 0; i < resumptions_.size(); ++i) {
    if (resumptions_[i].generation != generation) continue;
    const bool last = i + 1 == resumptions_.size();
    return position >= resumptions_[i].position &&
           (last || position <= resumptions_[i + 1].position);
  }
  return false;
}

uint64_t Lineage::GenerationOf(uint64_t index) const {
  uint64_t generation = 0;
  for (const Resumption& resumption : resumptions_) {
    if (resumption.position > index) break;
    generation = resumption.generation;
  }
  return generation;
}

GlobalRecord Ledger::At(uint64_t index) const {
  const Entry& entry = entries_[index - base_];
  const TimelineEntry place = timeline_.At(index);
  GlobalRecord record;
  record.set_epoch(place.epoch);
  record.set_step(place.step);
  record.set_evaluation(place.evaluation);
  record.set_loss_sum_quanta(entry.loss_sum_quanta);
  record.set_sample_digest(entry.sample_digest);
  record.set_samples(entry.samples);
  record.set_correct(entry.correct);
  record.set_epoch_seconds(entry.epoch_seconds);
  return record;
}

RunHistory Ledger::History() const {
  RunHistory history;
  for (uint64_t index = base_; index < size(); ++index) history.Add(At(index));
  return history;
}

Ledger::Result Ledger::Audit() const {
  Result result;
  if (!complete()) {
    result.status = absl::DataLossError(absl::StrCat(
        "the record of ", DescribePosition(timeline_, size()), " is missing: ", samples_, " of ",
        samples_expected_, " samples were counted"));
  }
  for (uint32_t epoch = timeline_.At(base_).epoch; epoch < timeline_.epochs(); ++epoch) {
    const absl::Status status = AuditEpoch(epoch, &result);
    if (result.status.ok()) result.status = status;
  }
  return result;
}

absl::Status Ledger::AuditEpoch(uint32_t epoch, Result* result) const {
  const uint64_t evaluation = timeline_.IndexOf({epoch, 0, true});
  const uint64_t first = std::max(base_, timeline_.IndexOf({epoch, 0, false}));
  // What is left of an epoch that was begun in another run.
  const uint32_t before =
      first == evaluation ? plan_.num_samples : plan_.Batch(timeline_.At(first).step).first;
  const PositionRange wanted{before, plan_.num_samples - before};
  uint64_t samples = 0;
  uint64_t digest = 0;
  for (uint64_t index = first; index < std::min(evaluation, size()); ++index) {
    samples += entries_[index - base_].samples;
    digest += entries_[index - base_].sample_digest;
  }
  result->lost += wanted.count - std::min<uint64_t>(samples, wanted.count);
  result->doubled += samples - std::min<uint64_t>(samples, wanted.count);
  if (samples != wanted.count || digest != DigestOfBatch(plan_.Order(epoch), wanted)) {
    return absl::DataLossError(absl::StrCat("epoch ", epoch, ": the ", samples,
                                            " samples gathered are not the ", wanted.count,
                                            " of the training set, each exactly once"));
  }
  if (evaluation >= size()) return absl::OkStatus();  // the missing record is told of
  const Entry& tested = entries_[evaluation - base_];
  if (tested.samples == num_test_samples_ && tested.sample_digest == test_digest_) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat("evaluation after epoch ", epoch, ": the ",
                                          tested.samples, " samples gathered are not the ",
                                          num_test_samples_, " of the test set"));
}

std::string DescribePosition(const Timeline& timeline, uint64_t position) {
  return position >= timeline.end() ? "the end" : Place(timeline.At(position));
}

Position ToProto(const Timeline& timeline, uint64_t position) {
  Position proto;
  const TimelineEntry place = timeline.At(position);
  proto.set_epoch(place.epoch);
  proto.set_step(place.evaluation ? timeline.steps_per_epoch() : place.step);
  proto.set_phase(position >= timeline.end() ? Position::DONE
                  : place.evaluation         ? Position::EVALUATE
                                             : Position::TRAIN);
  return proto;
}

absl::StatusOr<uint64_t> FromProto(const Timeline& timeline, const Position& position) {
  if (position.phase() == Position::DONE) return timeline.end();
  const uint32_t steps = timeline.steps_per_epoch();
  // The last step's successor is the evaluation, whatever the phase says.
  const bool in_epoch = (position.phase() == Position::TRAIN && position.step() <= steps) ||
                        (position.phase() == Position::EVALUATE && position.step() == steps);
  if (position.epoch() >= timeline.epochs() || !in_epoch) {
    return absl::InvalidArgumentError(
        absl::StrCat("position epoch ", position.epoch(), ", step ", position.step(), ", phase ",
                     static_cast<int>(position.phase()), " in a run of ", timeline.epochs(),
                     " epochs of ", steps, " steps"));
  }
  return position.epoch() * timeline.records_per_epoch() + position.step();
}

}  // namespace ringmaster
