// `ringmaster chaos`: breaks a running run on purpose, on real processes, as cli/chaos_plan.h says.
//
// Thread safety: for main().
#pragma once

#include "common/settings.h"

namespace ringmaster {

// Carries out settings.chaos, with settings.seed, on the run of settings.coordinator. Returns 0
// when all is done, 3 when the run was over before, 1 when something could not be done (logged), 2
// for a wrong spec, 130/143 when told to stop. Whatever was stopped or cut off goes on then.
int RunChaosCommand(const Settings& settings);

}  // namespace ringmaster
