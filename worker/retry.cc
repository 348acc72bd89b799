#include "worker/retry.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/logging.h"

namespace ringmaster {

absl::Duration Backoff::Next() {
  const absl::Duration pause = pause_;
  pause_ = std::min(pause_ * 2, absl::Seconds(2));
  return pause * std::uniform_real_distribution<double>(0.5, 1.0)(random_);
}

RetryClock RetryClock::Real() {
  return {[] { return absl::Now(); }, [](absl::Duration pause) { absl::SleepFor(pause); }};
}

absl::Status RetryUntil(absl::Duration timeout, const std::string& goal, uint64_t seed,
                        const RetryClock& clock, const std::function<absl::Status()>& attempt) {
  Backoff backoff(seed);
  const absl::Time deadline = clock.now() + timeout;
  std::string last_reason;
  for (;;) {
    const absl::Status status = attempt();
    if (!absl::IsUnavailable(status)) return status;
    const std::string reason(status.message());
    const absl::Duration left = deadline - clock.now();
    if (left <= absl::ZeroDuration()) {
      return absl::DeadlineExceededError(absl::StrCat(
          "could not ", goal, " within ", absl::FormatDuration(timeout), ". Last reason: ", reason,
          ". Check the address, that the coordinator runs and that its port can be reached; "
          "--join-timeout sets how long to try"));
    }
    if (reason != last_reason) spdlog::warn("cannot {} yet: {}; trying again", goal, reason);
    last_reason = reason;
    clock.sleep(std::min(backoff.Next(), left));
  }
}

}  // namespace ringmaster
