#include "coordinator/run_outputs.h"

#include <utility>

#include "common/file.h"
#include "common/status_macros.h"
#include "common/weights.h"
#include "spdlog/spdlog.h"

namespace ringmaster {
namespace {

absl::StatusOr<std::unique_ptr<RunLogger>> OpenLogs(const RunOutputs::Options& options,
                                                    absl::Time now) {
  if (!options.resumed) return RunLogger::Create(options.run_dir, options.config, now);
  std::string note;
  auto logger = RunLogger::Resume(options.run_dir, options.config, now, &note);
  if (!note.empty()) spdlog::warn("the TensorBoard logs: {}", note);
  return logger;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RunOutputs>> RunOutputs::Create(Options options, absl::Time now) {
  RM_RETURN_IF_ERROR(WriteFileAtomically(options.run_dir + "/config.json", ToJson(options.config)));
  RM_ASSIGN_OR_RETURN(auto logger, OpenLogs(options, now));
  return std::unique_ptr<RunOutputs>(new RunOutputs(std::move(options), std::move(logger)));
}

RunOutputs::RunOutputs(Options options, std::unique_ptr<RunLogger> logger)
    : options_(std::move(options)),
      logger_(std::move(logger)),
      progress_(options_.progress, options_.config, options_.out) {}

void RunOutputs::Record(const GlobalRecord& record, absl::Time now) {
  Complain(logger_->Record(record, now));
  progress_.Record(record, now);
}

void RunOutputs::Replay(const GlobalRecord& record, absl::Time now) {
  Complain(logger_->Record(record, now));
}

void RunOutputs::Rewind(const RunHistory& history, absl::Time epoch_began) {
  progress_.Rewind(history, epoch_began);
}

void RunOutputs::Weights(uint32_t epoch, const TrainState& state, absl::Time now) {
  Complain(logger_->Weights(epoch, options_.model, state, now));
}

absl::Status RunOutputs::SaveFinalWeights(const std::vector<float>& parameters) {
  return SaveWeights(options_.run_dir + "/weights.safetensors", options_.model, parameters);
}

absl::Status RunOutputs::Finish(const RunReport& report) {
  Complain(logger_->Close());
  progress_.Finish(report);
  const std::string json = ToJson(report);
  RM_RETURN_IF_ERROR(WriteFileAtomically(options_.run_dir + "/report.json", json));
  return options_.report.empty() ? absl::OkStatus() : WriteFileAtomically(options_.report, json);
}

void RunOutputs::Complain(const absl::Status& status) {
  if (status.ok() || complained_) return;
  complained_ = true;
  spdlog::error("the TensorBoard logs are incomplete, training goes on: {}",
                std::string(status.message()));
}

}  // namespace ringmaster
