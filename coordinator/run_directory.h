// The directory of a run: chosen and checked before anything is written, made when all else is
// known to be good.
//
// Thread safety: functions on the file system.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/settings.h"

namespace ringmaster {

// Whether a run may write to `settings.run_dir` (new, an empty directory, or that of a run to go on
// with) and to `settings.report`. INVALID_ARGUMENT: not, and why.
absl::Status CheckOutputs(const Settings& settings);

// Makes the run's directory, where it is not there, and returns its path: `settings.run_dir`, or a
// new runs/<UTC time>-<name> with runs/latest pointing at it. INVALID_ARGUMENT: it is in use; other
// codes: the file system refuses.
absl::StatusOr<std::string> MakeRunDirectory(const Settings& settings, absl::Time now);

}  // namespace ringmaster
