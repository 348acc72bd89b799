// RunOutputs: everything a run leaves behind, in its directory and on stdout.
//
// <run_dir>/config.json at the start, tensorboard/ as it goes, weights.safetensors and report.json
// at the end. A disk that fails is reported once, and training goes on.
//
// Thread safety: none; for one thread at a time. Time is passed in.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/model.h"
#include "coordinator/progress.h"
#include "coordinator/report.h"
#include "coordinator/run_logger.h"
#include "proto/training.pb.h"

namespace ringmaster {

class RunOutputs {
 public:
  struct Options {
    std::string run_dir;   // exists
    bool resumed = false;  // the run goes on: its directory may hold logs, which are continued
    std::string report;    // a second place for report.json; empty: none
    TrainingConfig config;
    ModelSpec model;
    ProgressOptions progress;
    FILE* out = stdout;
  };

  // Codes: those of writing config.json and of RunLogger::Create or Resume.
  static absl::StatusOr<std::unique_ptr<RunOutputs>> Create(Options options, absl::Time now);

  const std::string& run_dir() const { return options_.run_dir; }

  // The next record, in the order of training.
  void Record(const GlobalRecord& record, absl::Time now);
  // A record that a coordinator before this one took, from the first of an epoch on: logged if that
  // had no time to, not shown.
  void Replay(const GlobalRecord& record, absl::Time now);
  // Training goes on where `history` ends: at an earlier record, or where another coordinator left
  // it. Records that come again are not logged again.
  void Rewind(const RunHistory& history, absl::Time epoch_began);
  // The state after `epoch`.
  void Weights(uint32_t epoch, const TrainState& state, absl::Time now);
  // Makes what was logged survive a power cut (RunLogger::Sync).
  absl::Status SyncLogs() { return logger_->Sync(); }
  // Codes: those of SaveWeights of common/weights.h.
  absl::Status SaveFinalWeights(const std::vector<float>& parameters);
  // The last call: closes the logs, writes the report and prints the result. Codes: those of
  // writing the report.
  absl::Status Finish(const RunReport& report);

 private:
  RunOutputs(Options options, std::unique_ptr<RunLogger> logger);
  void Complain(const absl::Status& status);

  const Options options_;
  std::unique_ptr<RunLogger> logger_;
  Progress progress_;
  bool complained_ = false;
};

}  // namespace ringmaster
