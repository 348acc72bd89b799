// Watchdog: does something if it is not called off in time. One thread.
//
// Thread safety: safe from several threads.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <thread>
#include <utility>

#include "absl/time/time.h"
#include "common/mutex.h"

namespace ringmaster {

class Watchdog {
 public:
  // `action` runs on the watchdog's thread; it may not return.
  explicit Watchdog(std::function<void()> action)
      : action_(std::move(action)), thread_([this] { Run(); }) {}
  ~Watchdog() {
    {
      MutexLock lock(&mutex_);
      stopping_ = true;
      changed_.NotifyAll();
    }
    thread_.join();
  }

  // `timeout` from now, unless it is armed already: then nothing changes.
  void Arm(absl::Duration timeout) {
    MutexLock lock(&mutex_);
    if (!deadline_) deadline_ = Clock::now() + absl::ToChronoNanoseconds(timeout);
    changed_.NotifyAll();
  }
  void Disarm() {
    MutexLock lock(&mutex_);
    deadline_.reset();
  }

 private:
  using Clock = std::chrono::steady_clock;

  void Run() {
    mutex_.Lock();
    while (!stopping_) {
      if (!deadline_) {
        changed_.Wait(&mutex_);
      } else if (Clock::now() < *deadline_) {
        changed_.WaitUntil(&mutex_, *deadline_);
      } else {
        deadline_.reset();
        mutex_.Unlock();
        action_();
        mutex_.Lock();
      }
    }
    mutex_.Unlock();
  }

  const std::function<void()> action_;
  Mutex mutex_;
  CondVar changed_;
  std::optional<Clock::time_point> deadline_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace ringmaster
