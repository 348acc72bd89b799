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
}

void Supervisor::Add(Child child) { members_.emplace_back(std::move(child)); }

SupervisorResult Supervisor::Run() {
  result_.all_ok = true;
  while (!AllEnded()) {
    std::vector<int> descriptors = {signals_->fd()};
    for (const Member& member : members_) {
      if (member.ended) continue;
      descriptors.push_back(member.child.pidfd());
      if (member.open[0]) descriptors.push_back(member.child.stdout_fd());
      if (member.open[1]) descriptors.push_back(member.child.stderr_fd());
    }
    WaitReadable(descriptors, (told_ ? kill_at_ : terminate_at_) - absl::Now());
    HandleSignals();
    for (size_t i = 0; i < members_.size(); ++i) {
      if (members_[i].ended) continue;
      ReadOutput(i);
      Reap(i);
    }
    Press();
  }
  return std::move(result_);
}

void Supervisor::ReadOutput(size_t index) {
  Member& member = members_[index];
  const int descriptors[2] = {member.child.stdout_fd(), member.child.stderr_fd()};
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
  const std::optional<ExitStatus> status = member.child.Poll();
  if (!status) return;
  ReadOutput(index);  // what it wrote between the last look and its end
  for (std::string& partial : member.partial) {
    if (!partial.empty()) TakeLine(index, partial);
  }
  member.ended = true;
  if (status->ok()) return;
  result_.all_ok = false;
  const bool consequence = status->signal == 0 && status->code == options_.consequence_code;
  if (!result_.cause && !consequence && !told_) {
    result_.cause = ChildFailure{index, member.child.pid(), *status, member.last_lines};
  }
  terminate_at_ = std::min(terminate_at_, absl::Now() + options_.own_end);
}

void Supervisor::HandleSignals() {
  const int signal = signals_->Next();
  if (signal == 0) return;
  if (result_.stop_signal != 0) return SignalAll(SIGKILL);
  result_.stop_signal = signal;
  terminate_at_ = absl::Now();
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
  return std::all_of(members_.begin(), members_.end(), [](const Member& m) { return m.ended; });
}

void Supervisor::SignalAll(int signal) {
  for (Member& member : members_) {
    if (!member.ended) member.child.Signal(signal);
  }
}

}  // namespace ringmaster
