// Generation: what a process does in one generation, from its assignment until training stops, for
// whatever reason. Afterwards the process holds a state whose position is known, and goes on.
//
// Thread safety: one thread calls Run(); the rest is safe from any.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "common/mutex.h"
#include "kernels/backend.h"
#include "proto/training.grpc.pb.h"
#include "worker/coordinator_link.h"
#include "worker/device.h"
#include "worker/held_state.h"
#include "worker/interrupt.h"
#include "worker/reporter.h"
#include "worker/run_plan.h"
#include "worker/trainer.h"
#include "worker/watchdog.h"

namespace ringmaster {

class Generation : public GenerationListener {
 public:
  // What the process has; all of it is borrowed.
  struct Process {
    const RunPlan* plan = nullptr;
    const Device* device = nullptr;
    Training::StubInterface* training = nullptr;
    KeyValue::StubInterface* key_value = nullptr;
    Backend* backend = nullptr;
    Reporter* reporter = nullptr;
    HeldState* held = nullptr;
    Watchdog* hang = nullptr;  // armed when the generation is over; the owner calls it off
    std::string run_id;
    std::string listen_address;
  };

  Generation(const Process& process, Assigned assigned);

  // Takes the place assigned and trains. OK: to the end of the run. CANCELLED: all ranks stopped at
  // an agreed step. ABORTED: the generation is over, or Leave() found no training. UNAVAILABLE,
  // DEADLINE_EXCEEDED, NOT_FOUND, DATA_LOSS: it broke from here, which another generation can mend;
  // worker/unreachable.h may tell who was missing. Everything else: this process cannot go on.
  absl::Status Run();

  // The process is told to stop: ends Run() at the next step that all ranks can agree on, or, when
  // it is not training, at once.
  void Leave();

  void OnOver(const std::string& reason) override;
  void OnRegroup(const std::string& reason) override;

 private:
  absl::Status TakePlace();
  absl::Status CheckReachable() const;
  absl::Status TakeState();
  absl::StatusOr<TrainState> StartingState();
  absl::Status HandInState();
  absl::Status Connect();
  absl::Status Train();
  // Makes what the backend holds known as the process's state.
  absl::Status Settle(const TrainPosition& position);
  absl::Status CheckUpdates(const TrainState& state, uint64_t position) const;
  void SetTrainer(Trainer* trainer);

  const Process process_;
  const Assigned assigned_;
  const Assignment& assignment_;
  const Timeline timeline_;
  uint64_t position_ = 0;
  bool own_state_ = false;  // it is the one that this process held before
  absl::Duration timeout_;
  Interrupt interrupt_;
  std::unique_ptr<Communicator> communicator_;

  Mutex mutex_;
  std::string over_reason_ ABSL_GUARDED_BY(mutex_);
  bool regroup_ ABSL_GUARDED_BY(mutex_) = false;
  Trainer* trainer_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace ringmaster
