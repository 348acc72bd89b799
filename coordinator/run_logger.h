// RunLogger: turns the records of a run into TensorBoard event files, in Keras 3's layout.
//
// Writes <run_dir>/tensorboard/train and <run_dir>/tensorboard/validation, one file in each; it is
// their only writer. docs/tensorboard.md tells every tag. Values reach the disk about once a
// second.
//
// A failed write loses nothing: what could not be written stays in memory and is tried again with
// the next call, so a caller may report the error once and train on.
//
// Thread safety: none; for one thread at a time. Reads no clock: `now` is passed in, and should not
// go back.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/model.h"
#include "coordinator/run_history.h"
#include "coordinator/tensorboard/event_writer.h"
#include "proto/training.pb.h"

namespace ringmaster {

class RunLogger {
 public:
  // Makes the two directories and files, and writes the configuration as text. ALREADY_EXISTS if
  // there are such files already; otherwise the code of the failed system call.
  static absl::StatusOr<std::unique_ptr<RunLogger>> Create(const std::string& run_dir,
                                                           const TrainingConfig& config,
                                                           absl::Time now);

  RunLogger(const RunLogger&) = delete;
  RunLogger& operator=(const RunLogger&) = delete;

  // Logs the next record. Records come in the order of training (coordinator/audit.h sees to it).
  // The errors, here and below, are those of EventWriter::Add.
  absl::Status Record(const GlobalRecord& record, absl::Time now);

  // Logs a histogram of each weight as it is after `epoch` (0-based). INVALID_ARGUMENT if the state
  // does not fit the model.
  absl::Status Weights(uint32_t epoch, const ModelSpec& model, const TrainState& state,
                       absl::Time now);

  // Training goes on from an earlier record: `history` is what is left.
  void Rewind(const RunHistory& history);

  // Writes everything out.
  absl::Status Flush();

  // Writes everything out, to the disk itself, and closes the files. Nothing may be logged after.
  absl::Status Close();

 private:
  // Sums over the steps since the last point of the per-rank curves, for one rank.
  struct RankWindow {
    double compute_us = 0;
    double all_reduce_us = 0;
    uint64_t samples = 0;
    uint32_t steps = 0;
  };

  RunLogger(const TrainingConfig& config, std::unique_ptr<tensorboard::EventWriter> train,
            std::unique_ptr<tensorboard::EventWriter> validation);

  absl::Status RecordStep(const GlobalRecord& record, absl::Time now);
  absl::Status RecordEvaluation(const GlobalRecord& record, absl::Time now);
  absl::Status LogEpoch(uint32_t epoch, absl::Time now);
  absl::Status LogRanks(int64_t step, absl::Time now);
  void AddToWindows(const GlobalRecord& record);

  const TrainingConfig config_;
  const uint32_t steps_per_epoch_;
  const uint32_t window_steps_;  // steps that one point of the per-rank curves stands for
  std::unique_ptr<tensorboard::EventWriter> train_;
  std::unique_ptr<tensorboard::EventWriter> validation_;
  RunHistory history_;
  std::vector<RankWindow> windows_;  // by rank
};

}  // namespace ringmaster
