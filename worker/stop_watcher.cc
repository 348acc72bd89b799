#include "worker/stop_watcher.h"

#include <poll.h>
#include <unistd.h>

#include <utility>

#include "common/status_macros.h"

namespace ringmaster {

absl::StatusOr<std::unique_ptr<StopWatcher>> StopWatcher::Start() {
  RM_ASSIGN_OR_RETURN(StopSignals signals, StopSignals::Create());
  RM_ASSIGN_OR_RETURN(Pipe quit, MakePipe());
  return std::unique_ptr<StopWatcher>(new StopWatcher(std::move(signals), std::move(quit)));
}

StopWatcher::StopWatcher(StopSignals signals, Pipe quit)
    : signals_(std::move(signals)), quit_(std::move(quit)), thread_([this] { Run(); }) {}

StopWatcher::~StopWatcher() {
  quit_.write.Close();
  thread_.join();
}

void StopWatcher::SetAction(std::function<void()> action) {
  MutexLock lock(&mutex_);
  action_ = std::move(action);
  if (action_ && signal_ != 0) action_();
}

int StopWatcher::signal() const {
  MutexLock lock(&mutex_);
  return signal_;
}

void StopWatcher::Run() {
  for (;;) {
    pollfd polled[] = {{signals_.fd(), POLLIN, 0}, {quit_.read.get(), POLLIN, 0}};
    poll(polled, 2, -1);
    if (polled[1].revents != 0) return;
    const int signal = signals_.Next();
    if (signal == 0) continue;
    MutexLock lock(&mutex_);
    if (!action_ || signal_ != 0) _exit(ExitCodeForSignal(signal));
    signal_ = signal;
    action_();
  }
}

}  // namespace ringmaster
