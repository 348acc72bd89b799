#include "coordinator/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "common/sampling_plan.h"

namespace ringmaster {
namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// The first of the three that is set decides, as in POSIX.
bool LocaleIsUtf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const std::string locale = absl::AsciiStrToLower(Environment(name));
    if (locale.empty()) continue;
    return locale.find("utf-8") != std::string::npos || locale.find("utf8") != std::string::npos;
  }
  return false;
}

int TerminalWidth(int fd, int fallback) {
  winsize size = {};
  return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : fallback;
}

}  // namespace

ProgressStyle ResolveProgressStyle(const std::string& setting, bool is_terminal) {
  if (setting == "bar") return ProgressStyle::kBar;
  if (setting == "lines") return ProgressStyle::kLines;
  if (setting == "none") return ProgressStyle::kNone;
  return is_terminal ? ProgressStyle::kBar : ProgressStyle::kLines;
}

ProgressOptions DetectProgressOptions(const std::string& setting, FILE* out) {
  const int fd = fileno(out);
  const bool movable = isatty(fd) == 1 && Environment("TERM") != "dumb";
  ProgressOptions options;
  options.style = ResolveProgressStyle(setting, movable);
  options.terminal.width = TerminalWidth(fd, options.terminal.width);
  options.terminal.utf8 = LocaleIsUtf8();
  options.terminal.colour = movable && Environment("NO_COLOR").empty();
  return options;
}

Progress::Progress(const ProgressOptions& options, const TrainingConfig& config, FILE* out)
    : options_(options),
      config_(config),
      steps_per_epoch_(
          SamplingPlan{config.seed(), config.num_train_samples(), config.global_batch()}
              .steps_per_epoch()),
      out_(out) {}

void Progress::Record(const GlobalRecord& record, absl::Time now) {
  const bool new_epoch = record.epoch() >= history_.epochs().size();
  history_.Add(record);
  if (new_epoch) {
    epoch_began_ = now;
    painted_ = absl::InfinitePast();
  }
  switch (options_.style) {
    case ProgressStyle::kNone:
      return;
    case ProgressStyle::kLines:
      if (record.evaluation()) Write(EpochLine(View(now)) + "\n");
      return;
    case ProgressStyle::kBar:
      break;
  }
  if (new_epoch) {
    EndLine();
    Write(EpochHeader(View(now)) + "\n");
  }
  const bool epoch_done = history_.epochs().back().steps == steps_per_epoch_;
  if (epoch_done || now - painted_ >= options_.repaint_interval) Paint(now);
  if (record.evaluation()) EndLine();
}

void Progress::Rewind(const RunHistory& history, absl::Time epoch_began) {
  history_ = history;
  epoch_began_ = epoch_began;
  painted_ = absl::InfinitePast();
}

void Progress::Finish(const RunReport& report) {
  EndLine();
  Write(ClosingLines(report));
}

EpochView Progress::View(absl::Time now) const {
  EpochView view;
  view.epoch = static_cast<uint32_t>(history_.epochs().size()) - 1;
  view.epochs = config_.epochs();
  view.steps_per_epoch = steps_per_epoch_;
  view.summary = history_.epochs().back();
  view.elapsed = now - epoch_began_;
  return view;
}

// Spaces wipe out what an older, longer line leaves: no escape sequence is needed for that.
void Progress::Paint(absl::Time now) {
  painted_ = now;
  const std::string line = BarLine(View(now), options_.terminal);
  const int width = DisplayWidth(line);
  Write("\r" + line + std::string(std::max(0, line_width_ - width), ' '));
  line_width_ = width;
}

void Progress::EndLine() {
  if (line_width_ > 0) Write("\n");
  line_width_ = 0;
}

void Progress::Write(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), out_);
  std::fflush(out_);
}

}  // namespace ringmaster
