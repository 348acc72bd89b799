// TrainPosition: a place of a run's timeline as training sees it.
//
// Thread safety: plain values and pure functions.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/timeline.h"

namespace ringmaster {

// The next thing to do.
struct TrainPosition {
  enum class Phase : uint32_t { kTrain = 0, kEvaluate = 1, kDone = 2 };
  uint32_t epoch = 0;
  uint32_t step = 0;  // within the epoch; steps_per_epoch in phase kEvaluate
  Phase phase = Phase::kTrain;

  friend bool operator==(const TrainPosition&, const TrainPosition&) = default;
};

// The position that `index` records come before; index is at most timeline.end(), where it is DONE.
inline TrainPosition PositionAt(const Timeline& timeline, uint64_t index) {
  using Phase = TrainPosition::Phase;
  if (index >= timeline.end()) return {timeline.epochs(), 0, Phase::kDone};
  const TimelineEntry entry = timeline.At(index);
  if (entry.evaluation) return {entry.epoch, timeline.steps_per_epoch(), Phase::kEvaluate};
  return {entry.epoch, entry.step, Phase::kTrain};
}

// The records before `position`. INVALID_ARGUMENT: it is not of this timeline.
inline absl::StatusOr<uint64_t> IndexOf(const Timeline& timeline, const TrainPosition& position) {
  if (position.phase == TrainPosition::Phase::kDone) return timeline.end();
  if (position.epoch >= timeline.epochs() || position.step > timeline.steps_per_epoch()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot go on at step ", position.step, " of epoch ", position.epoch, ": ",
                     timeline.epochs(), " epochs have ", timeline.steps_per_epoch(), " steps"));
  }
  return timeline.IndexOf(
      {position.epoch, position.step, position.phase == TrainPosition::Phase::kEvaluate});
}

}  // namespace ringmaster
