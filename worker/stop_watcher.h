// Watches for SIGINT and SIGTERM on a thread of its own.
//
// Thread safety: safe from several threads. Create it before any other thread of the process, so
// that all of them leave the signals to it.
#pragma once

#include <functional>
#include <memory>
#include <thread>

#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "common/subprocess.h"

namespace ringmaster {

class StopWatcher {
 public:
  // INTERNAL: the kernel refuses.
  static absl::StatusOr<std::unique_ptr<StopWatcher>> Start();
  ~StopWatcher();

  // What the first signal does from now on; the second one ends the process at once, as the first
  // does without an action, with the exit code 128 + its number. A null action waits for one in
  // progress.
  void SetAction(std::function<void()> action);
  // The signal that has arrived, or 0.
  int signal() const;

 private:
  StopWatcher(StopSignals signals, Pipe quit);
  void Run();

  StopSignals signals_;
  Pipe quit_;
  mutable Mutex mutex_;
  std::function<void()> action_ ABSL_GUARDED_BY(mutex_);
  int signal_ ABSL_GUARDED_BY(mutex_) = 0;
  std::thread thread_;
};

}  // namespace ringmaster
