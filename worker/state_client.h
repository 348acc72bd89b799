// Hands training state to the coordinator and takes it from there.
//
// Thread safety: plain functions; they block.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model.h"
#include "proto/training.grpc.pb.h"

namespace ringmaster {

// PutState: `position` is the next thing to do with `state`. Codes: those of the rpc.
absl::Status PutState(Training::StubInterface* stub, const std::string& run_id, uint64_t generation,
                      const Position& position, const TrainState& state);

// GetState. DATA_LOSS if the state does not match its digest, INVALID_ARGUMENT if it is not of a
// model with `num_parameters` parameters; otherwise the codes of the rpc.
absl::StatusOr<TrainState> GetState(Training::StubInterface* stub, const std::string& run_id,
                                    uint64_t generation, size_t num_parameters);

}  // namespace ringmaster
