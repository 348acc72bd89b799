// HeldState: a copy in host memory of the newest state that this process is known to hold: what it
// can still tell of when its device hangs.
//
// Thread safety: safe from several threads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "common/model.h"
#include "common/mutex.h"

namespace ringmaster {

struct Held {
  uint64_t generation = 0;  // that computed the state, or began with it
  uint64_t position = 0;    // records before it
  std::shared_ptr<const TrainState> state;
};

class HeldState {
 public:
  void Set(uint64_t generation, uint64_t position, TrainState state) {
    Held held{generation, position, std::make_shared<const TrainState>(std::move(state))};
    MutexLock lock(&mutex_);
    held_ = std::move(held);
  }
  // Nothing: the initial state.
  std::optional<Held> Get() const {
    MutexLock lock(&mutex_);
    return held_;
  }

 private:
  mutable Mutex mutex_;
  std::optional<Held> held_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ringmaster
