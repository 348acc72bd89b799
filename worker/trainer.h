// Trainer: the loop of one rank in one generation, over a Backend and a Communicator.
//
// It knows nothing of gRPC: what happens is told to an observer, and flags travel in the gradient's
// tail, so that every change of plan happens at one step that all ranks agree on.
//
// Thread safety: Run() is called by one thread; position(), RaiseFlag() and Abort() from any.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/sampling_plan.h"
#include "common/step_tail.h"
#include "common/timeline.h"
#include "kernels/backend.h"
#include "worker/communicator.h"
#include "worker/train_position.h"

namespace ringmaster {

struct FinishedStep {
  uint32_t epoch = 0;
  uint32_t step = 0;  // 0 for an evaluation
  bool evaluation = false;
  ReducedRecord reduced;
  // On the last training step of an epoch, otherwise 0: from the first gather that this Run() did
  // in the epoch to the last state ready, evaluation excluded.
  double epoch_seconds = 0;
};

class TrainingObserver {
 public:
  virtual ~TrainingObserver() = default;
  // Each finished step and evaluation, in order, on the trainer's thread, on every rank.
  virtual void OnStep(const FinishedStep& step) = 0;
  // On rank 0 only, between two steps: whether to copy the state out now.
  virtual bool WantsState() = 0;
  // On rank 0 only: the state before `position`, as WantsState() asked, and at the end of each
  // epoch but the last. Training goes on when it returns.
  virtual void OnState(const TrainPosition& position, TrainState state) = 0;
};

struct TrainerOptions {
  SamplingPlan plan;
  uint32_t epochs = 0;
  uint32_t num_test_samples = 0;
  absl::Duration step_timeout = absl::Seconds(60);  // backstop for a step that never ends
};

class Trainer {
 public:
  // Borrows all three; they must outlive the trainer. The backend holds the state of `from` already
  // and knows its place in the world.
  Trainer(const TrainerOptions& options, Backend* backend, Communicator* communicator,
          TrainingObserver* observer);

  // Trains from `from` to the end; when it returns OK or CANCELLED, no other rank needs this one
  // any more. Codes: those of the backend and the communicator, with rank, epoch and step in the
  // message; CANCELLED when all ranks stopped at an agreed step because one raised kFlagRegroup;
  // ABORTED after Abort(); INVALID_ARGUMENT if `from` is not of this plan. After an error other
  // than CANCELLED nothing in flight reaches the state any more: the backend is poisoned and the
  // communicator aborted. However it ends, the observer has seen each step whose update was
  // applied: position() is that of the backend's state, unless the device failed.
  absl::Status Run(TrainPosition from);

  // The next thing to do; while Run() is going, what it is doing: the oldest step that is not
  // finished.
  TrainPosition position() const;
  // Steps finished by Run() so far, evaluations not counted.
  uint64_t steps_done() const { return steps_done_.load(std::memory_order_relaxed); }
  // Raises `flag` in this rank's next step, and in no other: when the epoch has no step left, in
  // the first one of the next epoch. Without a next epoch it is forgotten.
  void RaiseFlag(tail::Flag flag);
  // Ends Run(), and any later one, at once with ABORTED: poisons the backend, then aborts the
  // communicator.
  void Abort() noexcept;

 private:
  absl::Status TrainFrom(TrainPosition from);
  absl::Status TrainEpoch(uint32_t epoch, uint32_t first_step);
  absl::Status EnqueueStep(uint32_t epoch, uint32_t step);
  absl::Status Evaluate(uint32_t epoch);
  // Collects finished records, all of them or those there are, and tells the observer. Looks after
  // the communicator while it waits.
  absl::Status Collect(bool all);
  absl::Status Finish(ReducedRecord reduced);
  // Whether all ranks stop before `step` of this epoch, because one asked to.
  bool StopsBefore(uint32_t step) const;
  absl::Status HandOverState();
  absl::Status AfterError(const absl::Status& status);
  void CollectApplied();
  void AwaitOthers();

  const TrainerOptions options_;
  const Timeline timeline_;
  Backend* const backend_;
  Communicator* const communicator_;
  TrainingObserver* const observer_;
  std::atomic<bool> aborted_{false};
  std::atomic<uint32_t> flags_{0};     // a bit for each flag to raise
  std::atomic<uint64_t> position_{0};  // in records
  std::atomic<uint64_t> steps_done_{0};

  // Run()'s own.
  std::deque<FinishedStep> in_flight_;  // published and not collected, oldest first
  std::chrono::steady_clock::time_point epoch_start_;
  std::optional<uint32_t> stop_;  // the step of this epoch whose record asked to stop
};

}  // namespace ringmaster
