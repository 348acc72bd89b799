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
#include "kernels/backend.h"
#include "worker/communicator.h"

namespace ringmaster {

// The next thing to do. Ordered as training goes.
struct TrainPosition {
  enum class Phase : uint32_t { kTrain = 0, kEvaluate = 1, kDone = 2 };
  uint32_t epoch = 0;
  uint32_t step = 0;  // within the epoch; steps_per_epoch in phase kEvaluate
  Phase phase = Phase::kTrain;

  friend bool operator==(const TrainPosition&, const TrainPosition&) = default;
};

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
  // After each epoch's evaluation, on rank 0 only: the state to hand in. An error ends the run.
  virtual absl::Status OnEpochEnd(uint32_t epoch, const TrainState& state) = 0;
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

  // Trains from `from` to the end. Codes: those of the backend, the communicator and the observer,
  // with rank, epoch and step in the message; CANCELLED when all ranks stopped at an agreed step
  // because one raised kFlagStop; ABORTED after Abort(); INVALID_ARGUMENT if `from` is not of this
  // plan. After an error other than CANCELLED nothing in flight reaches the state any more: the
  // backend is poisoned and the communicator aborted.
  absl::Status Run(TrainPosition from);

  // The next thing to do; while Run() is going, what it is doing: the oldest step that is not
  // finished.
  TrainPosition position() const;
  // Steps finished by Run() so far, evaluations not counted.
  uint64_t steps_done() const { return steps_done_.load(std::memory_order_relaxed); }
  // Raises `flag` in this rank's next step, and in no other.
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
  absl::Status AfterError(const absl::Status& status);
  void SetPosition(TrainPosition position);

  const TrainerOptions options_;
  Backend* const backend_;
  Communicator* const communicator_;
  TrainingObserver* const observer_;
  std::atomic<bool> aborted_{false};
  std::atomic<uint32_t> flags_{0};     // a bit for each flag to raise
  std::atomic<uint64_t> position_{0};  // packed
  std::atomic<uint64_t> steps_done_{0};

  // Run()'s own.
  std::deque<FinishedStep> in_flight_;  // published and not collected, oldest first
  std::chrono::steady_clock::time_point epoch_start_;
  std::optional<uint32_t> stop_;  // the step of this epoch whose record asked to stop
};

}  // namespace ringmaster
