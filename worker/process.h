// One rank: a process with one device, from joining the run to its end.
//
// Thread safety: for main().
#pragma once

#include "common/settings.h"

namespace ringmaster {

// Exit code of a process that ends because of what happened to another: not the cause of anything.
inline constexpr int kExitConsequence = 3;

// Runs a rank. Returns its exit code: 0 when the run ended well, 1 when this process is the cause
// of a failure, 2 when it was asked for what it cannot do, kExitConsequence, or 130/143 when it was
// told to stop by a signal. Logs why when it is not 0.
int RunProcess(const Settings& settings);

}  // namespace ringmaster
