// RunReport: what `--report` and <run_dir>/report.json say about a run.
//
// Thread safety: a plain value and pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/run_history.h"
#include "proto/training.pb.h"

namespace ringmaster {

enum class RunOutcome { kSuccess, kFailed, kInterrupted };

struct RunReport {
  RunOutcome outcome = RunOutcome::kFailed;
  std::string reason;  // why it failed or was interrupted; empty after success

  std::string run_id;
  std::string run_dir;
  std::string version;  // ProgramVersion()
  absl::Time started = absl::UnixEpoch();
  absl::Time ended = absl::UnixEpoch();
  TrainingConfig config;

  uint32_t world_size = 0;   // of the last generation
  uint64_t generations = 0;  // communicators built
  DeviceKind device = DEVICE_KIND_UNSPECIFIED;
  std::vector<Member> members;  // of the last generation, by rank

  RunHistory history;
  uint64_t samples_committed = 0;  // counted by the gather of every rank
  uint64_t samples_expected = 0;   // by the plan
  uint64_t lost_samples = 0;       // of whole epochs, by the audit at the end
  uint64_t doubled_samples = 0;
  uint64_t records_redone = 0;  // steps and evaluations that were computed again
  uint32_t failures_survived = 0;
  uint32_t coordinator_starts = 1;
  std::vector<double> recoveries_seconds;  // from each failure to the first step after it
  std::string weights_sha256;  // WeightsSha256 of the final parameters; empty if there are none
};

// "cpu", "cuda", or "none" before a generation was formed.
std::string BackendName(DeviceKind device);

// The report as JSON text, indented, ending in a newline. Keys that have no value yet are null
// (test_accuracy of a run that was never evaluated), and so is a number that is not finite. Text
// that is not UTF-8 gets replacement characters.
std::string ToJson(const RunReport& report);

// The configuration alone, in the same form: <run_dir>/config.json.
std::string ToJson(const TrainingConfig& config);

}  // namespace ringmaster
