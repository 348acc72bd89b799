// `ringmaster-worker fetch`: brings the data set into the agent's memfd.
//
// Thread safety: for main().
#pragma once

#include "common/settings.h"

namespace ringmaster {

// Returns the exit code: 0 when descriptor settings.data_fd holds the sealed data set, else 1, or 2
// when --data-dir was given and cannot be read. Logs why.
int RunFetch(const Settings& settings);

}  // namespace ringmaster
