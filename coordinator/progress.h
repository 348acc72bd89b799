// Progress: shows a run on stdout while it goes, and its result at the end.
//
// On a terminal each epoch has Keras 3's progress bar, redrawn in place; elsewhere one line when
// it is done. What is shown is made by pure functions (coordinator/progress_text.h).
//
// Thread safety: none; for one thread at a time. Reads no clock: `now` is passed in.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

#include "absl/time/time.h"
#include "coordinator/progress_text.h"
#include "coordinator/report.h"
#include "coordinator/run_history.h"
#include "proto/training.pb.h"

namespace ringmaster {

enum class ProgressStyle { kBar, kLines, kNone };

// What `--progress` (auto|bar|lines|none) means: auto is a bar on a terminal that can move its
// cursor (TERM is not "dumb") and lines elsewhere.
ProgressStyle ResolveProgressStyle(const std::string& setting, bool is_terminal);

struct ProgressOptions {
  ProgressStyle style = ProgressStyle::kLines;
  TerminalTraits terminal;
  // Least time between two paintings of a bar.
  absl::Duration repaint_interval = absl::Milliseconds(50);
};

// The options for `out`, from the setting, the terminal and the environment (TERM, NO_COLOR, and
// LC_ALL, LC_CTYPE, LANG for UTF-8).
ProgressOptions DetectProgressOptions(const std::string& setting, FILE* out);

class Progress {
 public:
  // Borrows `out`. Errors of writing to it are ignored: nobody may be reading.
  Progress(const ProgressOptions& options, const TrainingConfig& config, FILE* out);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Takes the next record. Records come in the order of training.
  void Record(const GlobalRecord& record, absl::Time now);

  // Training goes on from an earlier record, or where another coordinator has shown it: `history`
  // is what there is by now. Shows nothing.
  void Rewind(const RunHistory& history, absl::Time epoch_began);

  // Leaves the bar's line and prints ClosingLines(report), whatever the style.
  void Finish(const RunReport& report);

 private:
  EpochView View(absl::Time now) const;
  void Paint(absl::Time now);
  void EndLine();
  void Write(const std::string& text);

  const ProgressOptions options_;
  const TrainingConfig config_;
  const uint32_t steps_per_epoch_;
  FILE* const out_;
  RunHistory history_;
  absl::Time epoch_began_ = absl::InfinitePast();
  absl::Time painted_ = absl::InfinitePast();
  int line_width_ = 0;  // columns of the bar that stands on the current line; 0: none
};

}  // namespace ringmaster
