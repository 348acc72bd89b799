// Hands training state to the coordinator and takes it from there.
//
// Thread safety: plain functions; they block.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/model.h"
#include "proto/training.grpc.pb.h"
#include "worker/interrupt.h"

namespace ringmaster {

// Both end with CANCELLED soon after `interrupt` (may be null) is triggered, and with
// DEADLINE_EXCEEDED after `timeout`.

// PutState: `position` is the next thing to do with `state`. Codes: those of the rpc.
absl::Status PutState(Training::StubInterface* stub, const std::string& run_id, uint64_t generation,
                      const Position& position, const TrainState& state, absl::Duration timeout,
                      Interrupt* interrupt);

// GetState: the state with `digest`, once it is there. DATA_LOSS if what comes has another digest,
// INVALID_ARGUMENT if it is not of a model with `num_parameters` parameters; otherwise the codes of
// the rpc.
absl::StatusOr<TrainState> GetState(Training::StubInterface* stub, const std::string& run_id,
                                    uint64_t generation, const std::string& digest,
                                    size_t num_parameters, absl::Duration timeout,
                                    Interrupt* interrupt);

}  // namespace ringmaster
