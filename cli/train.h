// `ringmaster train`: a coordinator and an agent on this machine, from start to end.
//
// Thread safety: for main().
#pragma once

#include "common/settings.h"

namespace ringmaster {

// Runs a training. Returns the exit code: 0 success, 1 failure, 2 wrong configuration, 130/143 by
// signal. No process of it is left behind. With settings.dry_run it only prints what it would do.
// With the run_dir of a run that was stopped or cut off it goes on with that run; with that of a
// finished one it prints its result.
int RunTrain(const Settings& settings);

}  // namespace ringmaster
