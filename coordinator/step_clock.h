// StepClock: how long steps take, for the verdict that one takes too long.
//
// A histogram of durations in buckets that grow by a quarter of an octave. Thread safety: none; a
// plain value.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "absl/time/time.h"

namespace ringmaster {

class StepClock {
 public:
  void Add(absl::Duration step) {
    const double us = std::max(1.0, absl::ToDoubleMicroseconds(step));
    const auto bucket = static_cast<size_t>(std::log2(us) * kPerOctave);
    ++counts_[std::min(bucket, counts_.size() - 1)];
    ++total_;
  }

  // What 99 of 100 steps do not exceed, to within a quarter of an octave above; zero before the
  // first.
  absl::Duration P99() const {
    uint64_t above = total_ / 100 + 1;  // the first of them, from above, that counts
    if (total_ == 0) return absl::ZeroDuration();
    size_t bucket = counts_.size();
    while (bucket > 1 && counts_[bucket - 1] < above) above -= counts_[--bucket];
    return absl::Microseconds(std::exp2(static_cast<double>(bucket) / kPerOctave));
  }

 private:
  static constexpr int kPerOctave = 4;
  std::array<uint64_t, 40 * kPerOctave> counts_ = {};  // up to 2^40 us, two weeks
  uint64_t total_ = 0;
};

}  // namespace ringmaster
