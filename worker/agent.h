// The agent of a node: looks what the node has, fetches the data set once, starts one process per
// device, and keeps them alive.
//
// It stays free of threads, of gRPC and of CUDA: what needs them runs in processes of its own
// (`ringmaster-worker probe`, `fetch`, `process`). Thread safety: for main().
#pragma once

#include "common/settings.h"

namespace ringmaster {

// Runs the agent. Returns its exit code: 0 when the run ended well, 1 after a failure that a new
// process would not help, 2 when it was asked for what this node cannot do, 130/143 when it was
// told to stop by a signal.
//
// A process that is lost is started anew (worker/restart_policy.h says when), with the local rank,
// data, notes and vault of the one before it. How often a run may survive that is the coordinator's
// to decide. Each loss is logged with host, rank, process and how it ended.
int RunAgent(const Settings& settings);

}  // namespace ringmaster
