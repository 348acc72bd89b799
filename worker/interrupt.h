// Interrupt: ends what another thread waits for.
//
// Thread safety: safe from several threads.
#pragma once

#include <functional>
#include <list>
#include <utility>

#include "common/mutex.h"

namespace ringmaster {

class Interrupt {
 public:
  // For good; a second call does nothing.
  void Trigger() {
    MutexLock lock(&mutex_);
    if (std::exchange(triggered_, true)) return;
    for (const std::function<void()>& action : actions_) action();
  }
  bool triggered() const {
    MutexLock lock(&mutex_);
    return triggered_;
  }

  // While it lives, Trigger() calls `action`; at once if it was triggered before. The action must
  // not use the interrupt. A null interrupt never calls. The destructor waits for a call in
  // progress.
  class Scope {
   public:
    Scope(Interrupt* interrupt, std::function<void()> action) : interrupt_(interrupt) {
      if (interrupt_ == nullptr) return;
      MutexLock lock(&interrupt_->mutex_);
      if (interrupt_->triggered_) action();
      place_ = interrupt_->actions_.insert(interrupt_->actions_.end(), std::move(action));
    }
    ~Scope() {
      if (interrupt_ == nullptr) return;
      MutexLock lock(&interrupt_->mutex_);
      interrupt_->actions_.erase(place_);
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Interrupt* const interrupt_;
    std::list<std::function<void()>>::iterator place_;
  };

 private:
  mutable Mutex mutex_;
  bool triggered_ ABSL_GUARDED_BY(mutex_) = false;
  std::list<std::function<void()>> actions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ringmaster
