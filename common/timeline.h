// The timeline of a run: its records as one sequence, for each epoch its training steps and then
// its evaluation. A position in it is the number of records before it, and names the next thing to
// do.
//
// Thread safety: plain values and pure functions.
#pragma once

#include <cstdint>

#include "common/sampling_plan.h"

namespace ringmaster {

// One record's place.
struct TimelineEntry {
  uint32_t epoch = 0;
  uint32_t step = 0;  // within the epoch; 0 for an evaluation
  bool evaluation = false;

  friend bool operator==(const TimelineEntry&, const TimelineEntry&) = default;
};

class Timeline {
 public:
  // At least one step an epoch.
  constexpr Timeline(uint32_t steps_per_epoch, uint32_t epochs)
      : steps_per_epoch_(steps_per_epoch), epochs_(epochs) {}
  Timeline(const SamplingPlan& plan, uint32_t epochs) : Timeline(plan.steps_per_epoch(), epochs) {}

  constexpr uint32_t steps_per_epoch() const { return steps_per_epoch_; }
  constexpr uint32_t epochs() const { return epochs_; }
  // The records of a whole run; as a position: nothing is left to do.
  constexpr uint64_t end() const { return records_per_epoch() * epochs_; }
  constexpr uint64_t records_per_epoch() const { return uint64_t{steps_per_epoch_} + 1; }

  // The place of record `index`. `index` is below end().
  constexpr TimelineEntry At(uint64_t index) const {
    const auto epoch = static_cast<uint32_t>(index / records_per_epoch());
    const auto within = static_cast<uint32_t>(index % records_per_epoch());
    if (within == steps_per_epoch_) return {epoch, 0, true};
    return {epoch, within, false};
  }
  constexpr uint64_t IndexOf(const TimelineEntry& entry) const {
    return entry.epoch * records_per_epoch() + (entry.evaluation ? steps_per_epoch_ : entry.step);
  }
  // Optimizer updates before position `index`.
  constexpr uint64_t UpdatesBefore(uint64_t index) const {
    return index / records_per_epoch() * steps_per_epoch_ + index % records_per_epoch();
  }

 private:
  uint32_t steps_per_epoch_;
  uint32_t epochs_;
};

}  // namespace ringmaster
