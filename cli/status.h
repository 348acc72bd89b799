// `ringmaster status`: what a run is doing now.
//
// Thread safety: FormatStatus is pure; RunStatusCommand is for main().
#pragma once

#include <string>

#include "common/settings.h"
#include "proto/training.pb.h"

namespace ringmaster {

// The status as lines of text.
std::string FormatStatus(const RunStatus& status);

// Asks settings.coordinator and prints. Returns 0, or 1 when it cannot be reached (logged).
int RunStatusCommand(const Settings& settings);

}  // namespace ringmaster
