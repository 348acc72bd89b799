#include "coordinator/progress_text.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace ringmaster {
namespace {

constexpr int kBarWidth = 20;
constexpr int kNarrowestBar = 5;

// What the steps took so far and take on average. The first record marks the start of the clock, so
// that one step less than recorded has been timed, until the workers report the epoch's own time.
struct Pace {
  double elapsed = 0;  // seconds, as the next
  double per_step = 0;
};

Pace PaceOf(const EpochView& view) {
  const EpochSummary& summary = view.summary;
  if (summary.seconds > 0) {
    return {summary.seconds, summary.seconds / std::max(1u, summary.steps)};
  }
  const double elapsed = absl::ToDoubleSeconds(view.elapsed);
  return {elapsed, summary.steps > 1 ? elapsed / (summary.steps - 1) : 0};
}

std::string StepTime(double seconds) {
  if (seconds >= 1) return absl::StrFormat("%.0fs/step", seconds);
  if (seconds >= 1e-3) return absl::StrFormat("%.0fms/step", seconds * 1e3);
  return absl::StrFormat("%.0fus/step", seconds * 1e6);
}

// "12s", "3:07", "1:02:03"
std::string Clock(double seconds) {
  const int64_t whole = std::llround(seconds);
  if (whole >= 3600) {
    return absl::StrFormat("%d:%02d:%02d", whole / 3600, whole / 60 % 60, whole % 60);
  }
  if (whole >= 60) return absl::StrFormat("%d:%02d", whole / 60, whole % 60);
  return absl::StrCat(whole, "s");
}

std::string Figure(const char* name, double value) {
  if (value > 1e-3 || value == 0) return absl::StrFormat("%s: %.4f", name, value);
  return absl::StrFormat("%s: %.4e", name, value);
}

std::vector<std::string> Figures(const EpochSummary& summary) {
  std::vector<std::string> figures = {Figure("accuracy", summary.accuracy),
                                      Figure("loss", summary.loss)};
  if (summary.evaluated) {
    figures.push_back(Figure("val_accuracy", summary.val_accuracy));
    figures.push_back(Figure("val_loss", summary.val_loss));
  }
  return figures;
}

// "  7/469": of the same width for every step.
std::string Count(const EpochView& view) {
  const int digits = static_cast<int>(absl::StrCat(view.steps_per_epoch).size());
  return absl::StrFormat("%*d/%d", digits, view.summary.steps, view.steps_per_epoch);
}

std::string Repeat(const char* text, int count) {
  std::string repeated;
  for (int i = 0; i < count; ++i) repeated += text;
  return repeated;
}

std::string Coloured(const char* code, const std::string& text, const TerminalTraits& terminal) {
  if (!terminal.colour || text.empty()) return text;
  return absl::StrCat("\x1b[", code, "m", text, "\x1b[0m");
}

std::string Bar(const EpochView& view, int width, const TerminalTraits& terminal) {
  const double share = static_cast<double>(view.summary.steps) / std::max(1u, view.steps_per_epoch);
  const int done = std::clamp(static_cast<int>(width * share), 0, width);
  // Without colours what is missing must look different.
  const char* missing = !terminal.utf8 ? "." : terminal.colour ? "━" : "─";
  return Coloured("32", Repeat(terminal.utf8 ? "━" : "=", done), terminal) +
         Coloured("37", Repeat(missing, width - done), terminal);
}

std::string ShellQuoted(const std::string& path) {
  const bool plain = std::all_of(path.begin(), path.end(), [](unsigned char c) {
    return std::isalnum(c) || std::string_view("/._-+=:@%,").find(c) != std::string_view::npos;
  });
  if (plain) return path;
  std::string quoted = "'";
  for (const char c : path) {
    if (c == '\'') {
      quoted += "'\\''";
    } else {
      quoted += c;
    }
  }
  return quoted + "'";
}

std::string SpeedLine(const RunReport& report) {
  double seconds = 0;
  for (const EpochSummary& epoch : report.history.epochs()) seconds += epoch.seconds;
  const uint64_t speed = static_cast<uint64_t>(std::llround(report.history.samples_per_second()));
  return absl::StrFormat("Speed: %s samples/s, %.2fs of training with %d %s (%s)\n",
                         WithCommas(speed), seconds, report.world_size,
                         report.world_size == 1 ? "process" : "processes",
                         BackendName(report.device));
}

}  // namespace

std::string EpochHeader(const EpochView& view) {
  return absl::StrFormat("Epoch %d/%d", view.epoch + 1, view.epochs);
}

std::string BarLine(const EpochView& view, const TerminalTraits& terminal) {
  const Pace pace = PaceOf(view);
  const uint32_t left = view.steps_per_epoch - std::min(view.steps_per_epoch, view.summary.steps);
  const std::string count = Count(view);
  // After a single step nothing is known about the pace.
  const bool timed = pace.per_step > 0;
  const std::string time = timed ? Clock(left == 0 ? pace.elapsed : pace.per_step * left) : "";
  const std::string rate = timed ? absl::StrCat(" ", StepTime(pace.per_step)) : "";
  std::vector<std::string> figures = Figures(view.summary);

  const auto text_width = [&] {
    size_t width = count.size() + time.size() + rate.size() + (timed ? 2 : 1);  // gaps
    for (const std::string& figure : figures) width += 3 + figure.size();
    return static_cast<int>(width);
  };
  int bar = kBarWidth;
  if (!view.summary.evaluated) {
    const int room = terminal.width - 1;
    while (!figures.empty() && text_width() + kNarrowestBar > room) figures.pop_back();
    bar = std::clamp(room - text_width(), 0, kBarWidth);
    if (bar == 0 && text_width() > room) return count.substr(0, std::max(0, room));
  }
  std::string line = absl::StrCat(Coloured("1", count, terminal), " ", Bar(view, bar, terminal),
                                  timed ? " " : "", Coloured("1", time, terminal), rate);
  for (const std::string& figure : figures) absl::StrAppend(&line, " - ", figure);
  return line;
}

std::string EpochLine(const EpochView& view) {
  const Pace pace = PaceOf(view);
  return absl::StrCat(EpochHeader(view), " - ", Count(view), " - ",
                      absl::StrFormat("%.2fs", pace.elapsed), " - ", StepTime(pace.per_step), " - ",
                      absl::StrJoin(Figures(view.summary), " - "));
}

namespace {

// What the run went through, if anything.
std::string Survived(const RunReport& report) {
  const uint32_t restarts = report.coordinator_starts - std::min(report.coordinator_starts, 1u);
  std::vector<std::string> parts;
  const auto add = [&parts](uint32_t count, const char* what) {
    if (count > 0) parts.push_back(absl::StrCat(count, " ", what, count == 1 ? "" : "s"));
  };
  add(report.failures_survived, "failure");
  add(restarts, "restart");
  return parts.empty() ? "" : absl::StrCat(", through ", absl::StrJoin(parts, " and "));
}

}  // namespace

std::string ClosingLines(const RunReport& report) {
  const std::string count = absl::StrCat(WithCommas(report.samples_committed), " of ",
                                         WithCommas(report.samples_expected), " samples");
  if (report.outcome != RunOutcome::kSuccess) {
    return report.samples_committed == 0 ? "" : count + "\n";
  }
  std::string lines = count + ", each exactly once" + Survived(report) + "\n";
  if (const EpochSummary* tested = report.history.last_evaluated(); tested != nullptr) {
    absl::StrAppendFormat(&lines, "Test accuracy: %.2f%%, loss: %.4f\n", 100 * tested->val_accuracy,
                          tested->val_loss);
  }
  absl::StrAppend(&lines, SpeedLine(report), "Results: ", report.run_dir,
                  "\nCurves: tensorboard --logdir ", ShellQuoted(report.run_dir + "/tensorboard"),
                  "\n");
  return lines;
}

std::string WithCommas(uint64_t value) {
  std::string text = absl::StrCat(value);
  for (int at = static_cast<int>(text.size()) - 3; at > 0; at -= 3) text.insert(at, 1, ',');
  return text;
}

int DisplayWidth(std::string_view text) {
  int width = 0;
  bool escape = false;
  for (const char c : text) {
    if (c == '\x1b') {
      escape = true;
    } else if (escape) {
      escape = c != 'm';
    } else if ((static_cast<unsigned char>(c) & 0xC0) != 0x80) {  // not inside a UTF-8 character
      ++width;
    }
  }
  return width;
}

}  // namespace ringmaster
