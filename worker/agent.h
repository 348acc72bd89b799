// The agent of a node: looks what the node has, fetches the data set once, starts one process per
// device, and watches them.
//
// It stays free of threads, of gRPC and of CUDA: what needs them runs in processes of its own
// (`ringmaster-worker probe`, `fetch`, `process`). Thread safety: for main().
#pragma once

#include "common/settings.h"

namespace ringmaster {

// Runs the agent. Returns its exit code: 0 when every process ended well, 1 after a failure, 2 when
// it was asked for what this node cannot do, 130/143 when it was told to stop by a signal. The
// first failure is logged with host, rank, process and last lines.
int RunAgent(const Settings& settings);

}  // namespace ringmaster
