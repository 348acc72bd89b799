// StateSender: hands states to the coordinator while training goes on. A thread of its own.
//
// Thread safety: safe from several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <thread>

#include "common/model.h"
#include "common/mutex.h"
#include "common/timeline.h"
#include "proto/training.grpc.pb.h"
#include "worker/coordinator_link.h"
#include "worker/interrupt.h"

namespace ringmaster {

// A state to hand in.
struct OutgoingState {
  uint64_t position = 0;  // records before it
  bool is_epoch_end = false;
  std::shared_ptr<const TrainState> state;
};

// What waits to be handed in: ends of epochs, up to a bound, and otherwise the newest only.
//
// Thread safety: for one thread at a time.
class StateQueue {
 public:
  static constexpr size_t kMaxEpochEnds = 8;

  void Add(OutgoingState state);
  // The oldest. It is not empty.
  OutgoingState Take();
  bool empty() const { return states_.empty(); }
  void Clear() { states_.clear(); }

 private:
  std::deque<OutgoingState> states_;
};

class StateSender {
 public:
  // Borrows both.
  StateSender(CoordinatorLink* link, Training::StubInterface* stub, const Timeline& timeline);
  ~StateSender();

  // States that are added from now on are of this generation.
  void Begin(uint64_t generation);
  // Drops what waits and gives up what is on its way: the generation is over.
  void End();
  void Add(OutgoingState state);
  // Waits until everything was handed in or refused: true. False as soon as `give_up` says so; it
  // is asked every 50 ms.
  bool AwaitIdle(const std::function<bool()>& give_up);

 private:
  void Run();
  // Whether it need not be sent again.
  bool Send(const OutgoingState& state, uint64_t generation, Interrupt* interrupt);

  CoordinatorLink* const link_;
  Training::StubInterface* const stub_;
  const Timeline timeline_;

  Mutex mutex_;
  CondVar changed_;
  StateQueue queue_ ABSL_GUARDED_BY(mutex_);
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;
  std::shared_ptr<Interrupt> in_flight_ ABSL_GUARDED_BY(mutex_);  // null: nothing is on its way
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace ringmaster
