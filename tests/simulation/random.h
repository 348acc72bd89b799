// Random: all the chance in one simulation, from its seed alone and the same on every machine.
//
// (SplitMix64.) Thread safety: a plain value.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace ringmaster {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0xD1342543DE82EF95ull + 1) { Next(); }

  uint64_t Next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  // In [0, count); `count` is at least 1.
  uint64_t Below(uint64_t count) { return Next() % count; }
  // In [low, high].
  uint64_t Between(uint64_t low, uint64_t high) { return low + Below(high - low + 1); }
  bool Chance(int percent) { return Below(100) < static_cast<uint64_t>(percent); }
  absl::Duration Between(absl::Duration low, absl::Duration high) {
    const auto span = static_cast<uint64_t>(absl::ToInt64Microseconds(high - low));
    return low + absl::Microseconds(static_cast<int64_t>(Below(span + 1)));
  }
  absl::Duration Milliseconds(int64_t low, int64_t high) {
    return Between(absl::Milliseconds(low), absl::Milliseconds(high));
  }

 private:
  uint64_t state_;
};

}  // namespace ringmaster
