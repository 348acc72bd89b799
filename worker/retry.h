// Trying again until it works: how a worker waits for a coordinator that is not there yet.
//
// Thread safety: plain values and functions.
#pragma once

#include <functional>
#include <random>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace ringmaster {

// Pauses that double from 0.1 s to 2 s, each shortened by a random part of up to a half, so that
// many workers do not come back all at once.
class Backoff {
 public:
  explicit Backoff(uint64_t seed) : random_(seed) {}
  absl::Duration Next();
  // Begins with 0.1 s again.
  void Reset() { pause_ = kShortest; }

 private:
  static constexpr absl::Duration kShortest = absl::Milliseconds(100);

  std::mt19937_64 random_;
  absl::Duration pause_ = kShortest;
};

// Time as RetryUntil sees it; a test moves its own.
struct RetryClock {
  std::function<absl::Time()> now;
  std::function<void(absl::Duration)> sleep;

  static RetryClock Real();
};

// Calls `attempt` until it returns something else than UNAVAILABLE and returns that. Logs the
// reason of a failure whenever it changes. DEADLINE_EXCEEDED after `timeout`, with `goal` ("reach
// the coordinator at HOST:PORT") and the last reason.
absl::Status RetryUntil(absl::Duration timeout, const std::string& goal, uint64_t seed,
                        const RetryClock& clock, const std::function<absl::Status()>& attempt);

}  // namespace ringmaster
