#include "common/logging.h"

#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"
#include "spdlog/sinks/stdout_sinks.h"

namespace ringmaster {
namespace {

enum class Format { kText, kJson, kChild };

std::string_view LevelName(spdlog::level::level_enum level) {
  const auto name = spdlog::level::to_string_view(level);
  return {name.data(), name.size()};
}

Format ChooseFormat() {
  const char* wanted = std::getenv("RINGMASTER_LOG");
  const std::string_view format = wanted == nullptr ? "" : wanted;
  if (format == "text") return Format::kText;
  if (format == "json") return Format::kJson;
  if (format == "child") return Format::kChild;
  return isatty(STDERR_FILENO) != 0 ? Format::kText : Format::kJson;
}

class LineFormatter : public spdlog::formatter {
 public:
  LineFormatter(std::string program, Format format, bool terminal, bool color)
      : program_(std::move(program)), format_(format), terminal_(terminal), color_(color) {}

  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const std::string_view text(message.payload.data(), message.payload.size());
    switch (format_) {
      case Format::kText:
        return Append(out, Text(message.level, text));
      case Format::kJson:
        return Append(out, Json(message, text));
      case Format::kChild:
        return Append(out, std::string(LevelName(message.level)) + ": " + std::string(text) + "\n");
    }
  }

  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<LineFormatter>(program_, format_, terminal_, color_);
  }

 private:
  static void Append(spdlog::memory_buf_t& out, const std::string& text) {
    out.append(text.data(), text.data() + text.size());
  }

  std::string Text(spdlog::level::level_enum level, std::string_view text) const {
    // A progress bar may stand on the terminal's current line: it is redrawn anyway.
    std::string line = terminal_ ? "\r\x1b[K" : "";
    line += program_ + ": ";
    if (level == spdlog::level::warn || level >= spdlog::level::err) {
      const bool warning = level == spdlog::level::warn;
      if (color_) line += warning ? "\x1b[33m" : "\x1b[31m";
      line += warning ? "warning: " : "error: ";
      if (color_) line += "\x1b[0m";
    }
    return line.append(text) + "\n";
  }

  std::string Json(const spdlog::details::log_msg& message, std::string_view text) const {
    const nlohmann::ordered_json line = {
        {"time", absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::FromChrono(message.time),
                                  absl::UTCTimeZone())},
        {"level", LevelName(message.level)},
        {"program", program_},
        {"pid", getpid()},
        {"message", text}};
    return line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  }

  const std::string program_;
  const Format format_;
  const bool terminal_;
  const bool color_;
};

spdlog::level::level_enum LevelFor(int verbosity) {
  if (verbosity < 0) return spdlog::level::warn;
  if (verbosity == 0) return spdlog::level::info;
  return verbosity == 1 ? spdlog::level::debug : spdlog::level::trace;
}

}  // namespace

void InitLogging(const std::string& program, int verbosity) {
  const bool terminal = isatty(STDERR_FILENO) != 0;
  const char* no_color = std::getenv("NO_COLOR");
  const bool color = terminal && (no_color == nullptr || *no_color == '\0');
  auto logger =
      std::make_shared<spdlog::logger>(program, std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_formatter(std::make_unique<LineFormatter>(program, ChooseFormat(), terminal, color));
  logger->set_level(LevelFor(verbosity));
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(std::move(logger));
}

void LogError(const absl::Status& status) { spdlog::error("{}", std::string(status.message())); }

void RelayLine(const std::string& source, const std::string& line) {
  for (const auto level : {spdlog::level::trace, spdlog::level::debug, spdlog::level::info,
                           spdlog::level::warn, spdlog::level::err, spdlog::level::critical}) {
    const std::string prefix = std::string(LevelName(level)) + ": ";
    if (line.starts_with(prefix)) {
      spdlog::log(level, "[{}] {}", source, line.substr(prefix.size()));
      return;
    }
  }
  spdlog::info("[{}] {}", source, line);
}

}  // namespace ringmaster
