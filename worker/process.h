// One rank: a process with one device, from joining the run to its end. It lives through the
// generations of the run, and through the coordinator's death.
//
// Thread safety: for main().
#pragma once

#include "common/settings.h"

namespace ringmaster {

// How a process ends, besides 0 (the run ended well) and 128 + the signal that told it to stop.
inline constexpr int kExitFailed = 1;  // it cannot go on; it may be started anew
inline constexpr int kExitMisconfigured =
    2;  // asked for what it cannot do: starting it anew is no help
inline constexpr int kExitConsequence = 3;  // the run is over, and did not end well
inline constexpr int kExitRespawn = 4;      // to be started anew, with what is in its vault
inline constexpr int kExitGaveUp = 5;       // no coordinator for longer than --join-timeout

// Runs a rank. Returns its exit code. Logs why when it is not 0.
//
// Told to stop by SIGTERM, SIGINT or SIGHUP it finishes the step in hand, hands over and leaves
// within a step and a second, whoever answers; a second signal ends it at once.
int RunProcess(const Settings& settings);

}  // namespace ringmaster
