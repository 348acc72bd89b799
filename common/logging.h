// Logging: spdlog's default logger, set up the same way in every program.
//
// Logs go to stderr, data to stdout. On a terminal a line is "name: message", coloured unless
// NO_COLOR is set; otherwise each line is one JSON object {"time", "level", "program", "pid",
// "message"}, so that `2>log` can be read by machines. RINGMASTER_LOG=text|json|child overrules
// that; `child` is "level: message", which the agent of a node relays with its own prefix.
//
// Thread safety: InitLogging is for main(), before other threads; logging itself is safe from any.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "spdlog/spdlog.h"

namespace ringmaster {

// `verbosity`: -1 warnings and errors only, 0 information, 1 debugging, 2 everything.
void InitLogging(const std::string& program, int verbosity);

// Logs the message of a status as an error.
void LogError(const absl::Status& status);

// Logs one line that another process wrote: `source` says which. A leading "level: " (the format of
// RINGMASTER_LOG=child) sets the level and is taken off.
void RelayLine(const std::string& source, const std::string& line);

}  // namespace ringmaster
