#include "worker/restart_policy.h"

#include <algorithm>

namespace ringmaster {

ProcessEnd MeaningOf(const ExitStatus& status) {
  if (status.signal != 0) return ProcessEnd::kFailed;
  constexpr int kLast = static_cast<int>(ProcessEnd::kGaveUp);
  return status.code <= kLast ? static_cast<ProcessEnd>(status.code) : ProcessEnd::kFailed;
}

absl::Duration RestartPolicy::LifeEnded(ProcessEnd how, absl::Time start, absl::Time end,
                                        bool trained) {
  if (how == ProcessEnd::kRespawn) return absl::ZeroDuration();
  futile_lives_ = trained || end - start >= options_.long_life ? 0 : futile_lives_ + 1;
  if (futile_lives_ <= 1) return absl::ZeroDuration();
  absl::Duration wait = options_.first_wait;
  for (int life = 2; life < futile_lives_ && wait < options_.longest_wait; ++life) wait *= 2;
  return std::min(wait, options_.longest_wait);
}

}  // namespace ringmaster
