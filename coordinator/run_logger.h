// RunLogger: turns the records of a run into TensorBoard event files, in Keras 3's layout.
//
// Writes <run_dir>/tensorboard/train and <run_dir>/tensorboard/validation, one file in each for
// each life of the coordinator; it is their only writer. docs/tensorboard.md tells every tag.
// Values reach the disk about once a second.
//
// Each step is logged once, whatever is recorded twice: steps that were computed again after a
// loss, and records that a new coordinator plays back from its journal.
//
// A failed write loses nothing: what could not be written stays in memory and is tried again with
// the next call, so a caller may report the error once and train on.
//
// Thread safety: none; for one thread at a time. Reads no clock: `now` is passed in, and should not
// go back.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
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

  // Goes on with the logs of a run whose coordinator was started anew, or begins them if there are
  // none. Record is then fed from the first step of an epoch: the means of an epoch and the windows
  // of the ranks need all of its steps, also those that are in the logs already. `*note` gets what
  // a crash left torn or damaged; empty if nothing. A full disk is no error. The code of the system
  // call that failed to read the logs.
  static absl::StatusOr<std::unique_ptr<RunLogger>> Resume(const std::string& run_dir,
                                                           const TrainingConfig& config,
                                                           absl::Time now, std::string* note);

  RunLogger(const RunLogger&) = delete;
  RunLogger& operator=(const RunLogger&) = delete;

  // Logs the next record. Records come in the order of training (coordinator/ledger.h sees to it);
  // one that is not beyond the last, because training went back, is passed over. The errors, here
  // and below, are those of EventWriter::Add.
  absl::Status Record(const GlobalRecord& record, absl::Time now);

  // Logs a histogram of each weight as it is after `epoch` (0-based), and writes it at once:
  // records can be had again from the journal, a state that was acknowledged cannot.
  // INVALID_ARGUMENT if the state does not fit the model.
  absl::Status Weights(uint32_t epoch, const ModelSpec& model, const TrainState& state,
                       absl::Time now);

  // Writes everything out.
  absl::Status Flush();

  // Writes everything out, to the disk itself: what was logged survives a power cut. To be called
  // before the journal forgets the records.
  absl::Status Sync();

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

  // When in training a record is from: epoch, evaluation, step.
  using Position = std::tuple<uint32_t, bool, uint32_t>;

  RunLogger(const TrainingConfig& config, std::unique_ptr<tensorboard::EventWriter> train,
            std::unique_ptr<tensorboard::EventWriter> validation);

  absl::Status LogConfig(absl::Time now);

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
  std::optional<Position> last_;  // recorded
  RunHistory history_;
  std::vector<RankWindow> windows_;  // by rank
};

}  // namespace ringmaster
