#include "worker/supervisor.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "common/logging.h"

namespace ringmaster {
namespace {

constexpr size_t kMaxLine = 1 << 16;

}  // namespace

Supervisor::Supervisor(StopSignals* signals, Options options)
    : signals_(signals), options_(std::move(options)) {
  if (!options_.relay) options_.relay = RelayLine;
  if (!options_.trained) options_.trained = [](size_t) { return false; };
  if (!options_.on_failure) options_.on_failure = [](const ChildFailure&) {};
}

void Supervisor::Member::Begin(Child begun) {
  child.emplace(std::move(begun));
  started = absl::Now();
  for (int i = 0; i < 2; ++i) {
    partial[i].clear();
    open[i] = true;
  }
  last_lines.clear();
  restart_at = absl::InfiniteFuture();
}

void Supervisor::Add(Child child) { members_.emplace_back(std::move(child), options_.waits); }

SupervisorResult Supervisor::Run() {
  while (!AllEnded()) {
    Wait();
    HandleSignals();
    for (size_t i = 0; i < members_.size(); ++i) {
      if (members_[i].running()) {
        ReadOutput(i);
        Reap(i);
      }
      RestartWhenDue(i);
    }
    Press();
  }
  return std::move(result_);
}

void Supervisor::Wait() {
  std::vector<int> descriptors = {signals_->fd()};
  absl::Time wake = told_ ? kill_at_ : terminate_at_;
  for (const Member& member : members_) {
    wake = std::min(wake, member.restart_at);
    if (!member.running()) continue;
    descriptors.push_back(member.child->pidfd());
    if (member.open[0]) descriptors.push_back(member.child->stdout_fd());
    if (member.open[1]) descriptors.push_back(member.child->stderr_fd());
  }
  WaitReadable(descriptors, wake - absl::Now());
}

void Supervisor::ReadOutput(size_t index) {
  Member& member = members_[index];
  const int descriptors[2] = {member.child->stdout_fd(), member.child->stderr_fd()};
  for (int i = 0; i < 2; ++i) {
    char buffer[1 << 14];
    ssize_t count = 0;
    while (member.open[i] && (count = read(descriptors[i], buffer, sizeof buffer)) > 0) {
      member.partial[i].append(buffer, static_cast<size_t>(count));
      TakeLines(index, &member.partial[i]);
    }
    if (count == 0) member.open[i] = false;
  }
}

void Supervisor::TakeLines(size_t index, std::string* text) {
  for (;;) {
    const size_t newline = text->find('\n');
    const bool too_long = std::min(newline, text->size()) > kMaxLine;
    if (newline == std::string::npos && !too_long) return;
    const size_t length = too_long ? kMaxLine : newline;
    TakeLine(index, text->substr(0, length));
    text->erase(0, too_long ? length : length + 1);
  }
}

void Supervisor::TakeLine(size_t index, const std::string& line) {
  Member& member = members_[index];
  if (member.last_lines.size() == kLastLines) member.last_lines.erase(member.last_lines.begin());
  member.last_lines.push_back(line);
  options_.relay(options_.label(index), line);
}

void Supervisor::Reap(size_t index) {
  Member& member = members_[index];
  const std::optional<ExitStatus> status = member.child->Poll();
  if (!status) return;
  ReadOutput(index);  // what it wrote between the last look and its end
  for (const std::string& partial : member.partial) {
    if (!partial.empty()) TakeLine(index, partial);
  }
  const pid_t pid = member.child->pid();
  member.child.reset();
  if (!told_ && result_.stop_signal == 0) OnEnd(index, pid, *status);
}

void Supervisor::OnEnd(size_t index, pid_t pid, const ExitStatus& status) {
  switch (MeaningOf(status)) {
    case ProcessEnd::kFinished:
      if (!over_) result_.ok = true;
      return ConcludeRun(options_.good_end);
    case ProcessEnd::kRunIsOver:
      return ConcludeRun(options_.own_end);
    default:
      return OnFailure(index, pid, status);
  }
}

void Supervisor::ConcludeRun(absl::Duration own_end) {
  over_ = true;
  terminate_at_ = std::min(terminate_at_, absl::Now() + own_end);
  for (Member& member : members_) member.restart_at = absl::InfiniteFuture();
}

void Supervisor::OnFailure(size_t index, pid_t pid, const ExitStatus& status) {
  Member& member = members_[index];
  ChildFailure failure;
  failure.index = index;
  failure.pid = pid;
  failure.status = status;
  failure.last_lines = member.last_lines;
  const ProcessEnd how = MeaningOf(status);
  const bool may_restart = how == ProcessEnd::kFailed || how == ProcessEnd::kRespawn;
  if (over_) {
    failure.then = ChildFailure::Then::kRunIsOver;
  } else if (options_.restart && may_restart) {
    const absl::Time now = absl::Now();
    failure.then = ChildFailure::Then::kRestart;
    failure.wait = member.policy.LifeEnded(how, member.started, now, options_.trained(index));
    failure.futile_lives = member.policy.futile_lives();
    member.restart_at = now + failure.wait;
  } else {
    result_.cause = failure;
    ConcludeRun(options_.own_end);
  }
  options_.on_failure(failure);
}

void Supervisor::RestartWhenDue(size_t index) {
  Member& member = members_[index];
  if (absl::Now() < member.restart_at) return;
  absl::StatusOr<Child> child = options_.restart(index);
  if (child.ok()) return member.Begin(*std::move(child));
  // As a life that ended where it began: the next try waits longer.
  member.started = absl::Now();
  member.last_lines = {std::string(child.status().message())};
  OnFailure(index, 0, ExitStatus{static_cast<int>(ProcessEnd::kFailed), 0});
}

void Supervisor::HandleSignals() {
  const int signal = signals_->Next();
  if (signal == 0) return;
  if (result_.stop_signal != 0) return SignalAll(SIGKILL);
  result_.stop_signal = signal;
  ConcludeRun(absl::ZeroDuration());
}

void Supervisor::Press() {
  if (told_ && absl::Now() >= kill_at_) {
    kill_at_ = absl::InfiniteFuture();
    SignalAll(SIGKILL);
  } else if (!told_ && absl::Now() >= terminate_at_) {
    told_ = true;
    kill_at_ = absl::Now() + (result_.stop_signal != 0 ? options_.grace : options_.failure_grace);
    SignalAll(SIGTERM);
  }
}

bool Supervisor::AllEnded() const {
  return std::all_of(members_.begin(), members_.end(),
                     [](const Member& m) { return !m.running() && !m.waiting(); });
}

void Supervisor::SignalAll(int signal) {
  for (Member& member : members_) {
    if (member.running()) member.child->Signal(signal);
  }
}

}  // namespace ringmaster
