#include "cli/part.h"

#include <signal.h>

#include <utility>

#include "absl/time/clock.h"
#include "common/logging.h"
#include "common/status_macros.h"

namespace ringmaster {

bool Died(const ExitStatus& status) {
  if (status.signal != 0) return true;
  const bool by_signal =
      status.code > ExitCodeForSignal(0) && status.code < ExitCodeForSignal(NSIG);
  return status.code > 2 && !by_signal;
}

bool DeathCount::MayStartAgain(absl::Time start, absl::Time end) {
  deaths_ = end - start >= kLongLife ? 1 : deaths_ + 1;
  return deaths_ < kTooMany;
}

absl::Status Part::Start(const ChildOptions& options) {
  RM_ASSIGN_OR_RETURN(child_, Child::Start(options));
  started_ = absl::Now();
  return absl::OkStatus();
}

std::optional<ExitStatus> Part::TakeEnd() {
  if (!child_) return std::nullopt;
  const std::optional<ExitStatus> end = child_->Poll();
  if (!end) return std::nullopt;
  child_.reset();
  last_end_ = *end;
  return end;
}

bool Part::MayStartAgain() {
  const bool again = deaths_.MayStartAgain(started_, absl::Now());
  if (again) {
    spdlog::warn("the {} {}; it is started again", name_, last_end_.Describe());
  } else {
    spdlog::error("the {} {}, and that is its death number {} in a row: giving up", name_,
                  last_end_.Describe(), deaths_.deaths());
  }
  return again;
}

void Part::Tell(int signal, absl::Duration grace) {
  if (!child_ || told_) return;
  told_ = true;
  kill_at_ = absl::Now() + grace;
  child_->Signal(signal);
}

void Part::EndBy(absl::Time time, absl::Duration grace) {
  if (time >= terminate_at_) return;
  terminate_at_ = time;
  grace_ = grace;
}

void Part::Kill() {
  if (child_) child_->Signal(SIGKILL);
}

void Part::Press() {
  if (absl::Now() >= terminate_at_) Tell(SIGTERM, grace_);
  if (absl::Now() < kill_at_) return;
  kill_at_ = absl::InfiniteFuture();
  Kill();
}

absl::Time Part::next_press() const {
  if (!child_) return absl::InfiniteFuture();
  return told_ ? kill_at_ : terminate_at_;
}

}  // namespace ringmaster
