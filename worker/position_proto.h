// TrainPosition as the protocol's Position, and back.
//
// Thread safety: pure functions.
#pragma once

#include "proto/training.pb.h"
#include "worker/train_position.h"

namespace ringmaster {

inline TrainPosition FromProto(const Position& position) {
  return {position.epoch(), position.step(), static_cast<TrainPosition::Phase>(position.phase())};
}

inline Position ToProto(const TrainPosition& position) {
  Position proto;
  proto.set_epoch(position.epoch);
  proto.set_step(position.step);
  proto.set_phase(static_cast<Position::Phase>(position.phase));
  return proto;
}

}  // namespace ringmaster
