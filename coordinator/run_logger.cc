#include "coordinator/run_logger.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/sampling_plan.h"
#include "common/status_macros.h"
#include "coordinator/tensorboard/summary.h"

namespace ringmaster {
namespace {

using tensorboard::EventSource;
using tensorboard::EventWriter;
using tensorboard::HistogramValue;
using tensorboard::ScalarValue;
using tensorboard::Summary;
using tensorboard::TextValue;

// The curves of the ranks have this many points an epoch: at 8 ranks still less than the others.
constexpr uint32_t kRankPointsPerEpoch = 10;

void AddScalar(const std::string& tag, double value, Summary* summary) {
  *summary->add_value() = ScalarValue(tag, static_cast<float>(value));
}

SamplingPlan Plan(const TrainingConfig& config) {
  return {config.seed(), config.num_train_samples(), config.global_batch(),
          SliceGranularity(config.reproducible())};
}

std::string ConfigTable(const TrainingConfig& config) {
  std::string table = "| setting | value |\n| --- | --- |\n";
  const auto row = [&table](const char* name, const auto& value) {
    absl::StrAppend(&table, "| ", name, " | ", value, " |\n");
  };
  row("layers", absl::StrJoin(config.layers(), " - "));
  row("optimizer", config.optimizer() == SGD ? "SGD" : "Adam");
  row("learning rate", config.learning_rate());
  row("global batch", config.global_batch());
  row("epochs", config.epochs());
  row("steps an epoch", Plan(config).steps_per_epoch());
  row("training samples", config.num_train_samples());
  row("test samples", config.num_test_samples());
  row("seed", config.seed());
  if (config.reproducible()) row("reproducible", "yes");
  row("data digest", config.data_digest());
  return table;
}

int RanksTimed(const GlobalRecord& record) {
  return std::min(record.compute_us_size(), record.all_reduce_us_size());
}

// How long the slowest rank took for its last step, in microseconds; 0 if nobody knows yet.
double StepMicroseconds(const GlobalRecord& record) {
  double slowest = 0;
  for (int rank = 0; rank < RanksTimed(record); ++rank) {
    slowest = std::max<double>(slowest, record.compute_us(rank) + record.all_reduce_us(rank));
  }
  return slowest;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RunLogger>> RunLogger::Create(const std::string& run_dir,
                                                             const TrainingConfig& config,
                                                             absl::Time now) {
  const EventSource source = EventSource::ThisProcess();
  const std::string root = absl::StrCat(run_dir, "/tensorboard/");
  RM_ASSIGN_OR_RETURN(auto train, EventWriter::Create(root + "train", source, now));
  RM_ASSIGN_OR_RETURN(auto validation, EventWriter::Create(root + "validation", source, now));
  std::unique_ptr<RunLogger> logger(new RunLogger(config, std::move(train), std::move(validation)));
  RM_RETURN_IF_ERROR(logger->LogConfig(now));
  return logger;
}

absl::StatusOr<std::unique_ptr<RunLogger>> RunLogger::Resume(const std::string& run_dir,
                                                             const TrainingConfig& config,
                                                             absl::Time now, std::string* note) {
  const EventSource source = EventSource::ThisProcess();
  const std::string root = absl::StrCat(run_dir, "/tensorboard/");
  std::string more;
  RM_ASSIGN_OR_RETURN(auto train, EventWriter::Resume(root + "train", source, now, note));
  RM_ASSIGN_OR_RETURN(auto validation,
                      EventWriter::Resume(root + "validation", source, now, &more));
  absl::StrAppend(note, note->empty() || more.empty() ? "" : "; ", more);
  std::unique_ptr<RunLogger> logger(new RunLogger(config, std::move(train), std::move(validation)));
  logger->LogConfig(now).IgnoreError();  // it is kept, and written with the rest
  return logger;
}

RunLogger::RunLogger(const TrainingConfig& config, std::unique_ptr<EventWriter> train,
                     std::unique_ptr<EventWriter> validation)
    : config_(config),
      steps_per_epoch_(Plan(config).steps_per_epoch()),
      window_steps_((steps_per_epoch_ + kRankPointsPerEpoch - 1) / kRankPointsPerEpoch),
      train_(std::move(train)),
      validation_(std::move(validation)) {}

absl::Status RunLogger::LogConfig(absl::Time now) {
  Summary summary;
  *summary.add_value() = TextValue("config", ConfigTable(config_));
  return train_->Add(0, std::move(summary), now);
}

absl::Status RunLogger::Record(const GlobalRecord& record, absl::Time now) {
  const Position position = {record.epoch(), record.evaluation(),
                             record.evaluation() ? 0 : record.step()};
  if (last_ && position <= *last_) return absl::OkStatus();
  last_ = position;
  history_.Add(record);
  return record.evaluation() ? RecordEvaluation(record, now) : RecordStep(record, now);
}

absl::Status RunLogger::RecordStep(const GlobalRecord& record, absl::Time now) {
  AddToWindows(record);
  // Keras counts batches, as the optimizer its updates, from 1.
  const int64_t step = int64_t{record.epoch()} * steps_per_epoch_ + record.step() + 1;
  const EpochSummary& epoch = history_.epochs()[record.epoch()];
  Summary summary;
  AddScalar("batch_loss", epoch.loss, &summary);
  AddScalar("batch_accuracy", epoch.accuracy, &summary);
  if (const double step_us = StepMicroseconds(record); step_us > 0) {
    AddScalar("batch_steps_per_second", 1e6 / step_us, &summary);
  }
  absl::Status status = train_->Add(step, std::move(summary), now);

  const uint32_t steps_done = record.step() + 1;
  const bool epoch_done = steps_done == steps_per_epoch_;
  if (steps_done % window_steps_ == 0 || epoch_done) status.Update(LogRanks(step, now));
  if (epoch_done) status.Update(LogEpoch(record.epoch(), now));
  return status;
}

absl::Status RunLogger::RecordEvaluation(const GlobalRecord& record, absl::Time now) {
  Summary epoch;
  AddScalar("epoch_loss", MeanLoss(record), &epoch);
  AddScalar("epoch_accuracy", Accuracy(record), &epoch);
  Summary evaluation;
  AddScalar("evaluation_loss_vs_iterations", MeanLoss(record), &evaluation);
  AddScalar("evaluation_accuracy_vs_iterations", Accuracy(record), &evaluation);
  const int64_t iterations = (int64_t{record.epoch()} + 1) * steps_per_epoch_;
  absl::Status status = validation_->Add(record.epoch(), std::move(epoch), now);
  status.Update(validation_->Add(iterations, std::move(evaluation), now));
  return status;
}

absl::Status RunLogger::LogEpoch(uint32_t epoch, absl::Time now) {
  const EpochSummary& done = history_.epochs()[epoch];
  Summary summary;
  AddScalar("epoch_loss", done.loss, &summary);
  AddScalar("epoch_accuracy", done.accuracy, &summary);
  AddScalar("epoch_learning_rate", config_.learning_rate(), &summary);
  return train_->Add(epoch, std::move(summary), now);
}

void RunLogger::AddToWindows(const GlobalRecord& record) {
  const int world_size = RanksTimed(record);
  const SamplingPlan plan = Plan(config_);
  const PositionRange batch = plan.Batch(record.step());
  windows_.resize(world_size);
  for (int rank = 0; rank < world_size; ++rank) {
    // A rank has no times before its first step is over.
    if (record.compute_us(rank) + record.all_reduce_us(rank) <= 0) continue;
    RankWindow& window = windows_[rank];
    window.compute_us += record.compute_us(rank);
    window.all_reduce_us += record.all_reduce_us(rank);
    window.samples += plan.Slice(batch, rank, world_size).count;
    window.steps += 1;
  }
}

absl::Status RunLogger::LogRanks(int64_t step, absl::Time now) {
  Summary summary;
  for (size_t rank = 0; rank < windows_.size(); ++rank) {
    const RankWindow& window = windows_[rank];
    if (window.steps == 0) continue;
    const std::string prefix = absl::StrCat("ranks/rank_", rank, "/");
    const double seconds = (window.compute_us + window.all_reduce_us) * 1e-6;
    AddScalar(prefix + "samples_per_second", static_cast<double>(window.samples) / seconds,
              &summary);
    AddScalar(prefix + "compute_ms", window.compute_us / window.steps * 1e-3, &summary);
    AddScalar(prefix + "all_reduce_ms", window.all_reduce_us / window.steps * 1e-3, &summary);
  }
  windows_.clear();
  return summary.value().empty() ? absl::OkStatus() : train_->Add(step, std::move(summary), now);
}

absl::Status RunLogger::Weights(uint32_t epoch, const ModelSpec& model, const TrainState& state,
                                absl::Time now) {
  if (state.parameters.size() != model.num_parameters()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the state after epoch ", epoch, " has ", state.parameters.size(),
                     " parameters, the model ", model.num_parameters()));
  }
  const std::span<const float> parameters(state.parameters);
  Summary summary;
  for (const ParameterSlice& slice : model.Slices()) {
    *summary.add_value() =
        HistogramValue(slice.name + "/histogram", parameters.subspan(slice.offset, slice.count));
  }
  RM_RETURN_IF_ERROR(train_->Add(epoch, std::move(summary), now));
  return train_->Flush();
}

absl::Status RunLogger::Flush() {
  absl::Status status = train_->Flush();
  status.Update(validation_->Flush());
  return status;
}

absl::Status RunLogger::Sync() {
  absl::Status status = train_->Sync();
  status.Update(validation_->Sync());
  return status;
}

absl::Status RunLogger::Close() {
  absl::Status status = train_->Close();
  status.Update(validation_->Close());
  return status;
}

}  // namespace ringmaster
