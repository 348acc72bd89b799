// The text of the progress display: pure functions from figures to lines, in the look of Keras 3.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "coordinator/report.h"
#include "coordinator/run_history.h"

namespace ringmaster {

// What the terminal can show.
struct TerminalTraits {
  int width = 80;       // columns
  bool utf8 = false;    // otherwise the bar is made of '='
  bool colour = false;  // ANSI colours
};

// One epoch to be shown.
struct EpochView {
  uint32_t epoch = 0;  // 0-based
  uint32_t epochs = 0;
  uint32_t steps_per_epoch = 0;
  EpochSummary summary;
  absl::Duration elapsed;  // since the epoch's first step
};

// "Epoch 1/6"
std::string EpochHeader(const EpochView& view);

// The bar's line, without a line end:
//   "235/469 ━━━━━━━━━━────────── 0s 430us/step - accuracy: 0.9251 - loss: 0.2602"
// The time is what the rest of the steps will take or, once all are done, what they took. While the
// line may be redrawn it stays narrower than the terminal: the bar shrinks first, then the last
// figures are left out. After the evaluation, when the line stays, nothing is left out.
std::string BarLine(const EpochView& view, const TerminalTraits& terminal);

// An epoch on one line, without a line end:
//   "Epoch 1/6 - 469/469 - 0.20s - 430us/step - accuracy: ... - loss: ... - val_accuracy: ..."
std::string EpochLine(const EpochView& view);

// What stands below a run: the audit's count, the test result, the speed, and where to find the
// results and how to look at the logs. Of a run that did not succeed only the count, if it is not
// 0. Each line ends in a newline.
std::string ClosingLines(const RunReport& report);

// 360000 as "360,000".
std::string WithCommas(uint64_t value);

// Columns that `text` takes: UTF-8 characters, escape sequences left out.
int DisplayWidth(std::string_view text);

}  // namespace ringmaster
