#include "worker/trainer.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

using Clock = std::chrono::steady_clock;
using Phase = TrainPosition::Phase;

// How often a wait for the device looks whether a peer has gone.
constexpr absl::Duration kPollInterval = absl::Milliseconds(10);

// Position in one word: epoch, step, phase from the top.
constexpr int kPhaseBits = 2;
constexpr int kEpochShift = 32;

}  // namespace

Trainer::Trainer(const TrainerOptions& options, Backend* backend, Communicator* communicator,
                 TrainingObserver* observer)
    : options_(options), backend_(backend), communicator_(communicator), observer_(observer) {}

TrainPosition Trainer::position() const {
  const uint64_t packed = position_.load(std::memory_order_relaxed);
  TrainPosition position;
  position.epoch = static_cast<uint32_t>(packed >> kEpochShift);
  position.step = static_cast<uint32_t>(packed) >> kPhaseBits;
  position.phase = static_cast<Phase>(packed & ((1u << kPhaseBits) - 1));
  return position;
}

void Trainer::SetPosition(TrainPosition position) {
  position_.store(uint64_t{position.epoch} << kEpochShift | uint64_t{position.step} << kPhaseBits |
                      static_cast<uint64_t>(position.phase),
                  std::memory_order_relaxed);
}

void Trainer::RaiseFlag(tail::Flag flag) { flags_.fetch_or(1u << flag); }

void Trainer::Abort() noexcept {
  aborted_ = true;
  backend_->Poison();
  communicator_->Abort();
}

absl::Status Trainer::Run(TrainPosition from) {
  if (from.step > options_.plan.steps_per_epoch()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("cannot go on at step %d of epoch %d: an epoch has %d steps", from.step,
                        from.epoch, options_.plan.steps_per_epoch()));
  }
  in_flight_.clear();
  SetPosition(from);
  const absl::Status status = aborted_ ? absl::AbortedError("aborted") : TrainFrom(from);
  return status.ok() || absl::IsCancelled(status) ? status : AfterError(status);
}

absl::Status Trainer::AfterError(const absl::Status& status) {
  backend_->Poison();
  communicator_->Abort();
  const TrainPosition at = position();
  return absl::Status(
      aborted_ ? absl::StatusCode::kAborted : status.code(),
      absl::StrFormat("rank %d of %d, epoch %d, %s: %s", communicator_->rank(),
                      communicator_->world_size(), at.epoch,
                      at.phase == Phase::kTrain ? absl::StrFormat("step %d", at.step)
                                                : std::string("evaluation"),
                      status.message()));
}

absl::Status Trainer::TrainFrom(TrainPosition from) {
  if (from.phase == Phase::kDone) return absl::OkStatus();
  uint32_t first_step = from.phase == Phase::kTrain ? from.step : options_.plan.steps_per_epoch();
  for (uint32_t epoch = from.epoch; epoch < options_.epochs; ++epoch) {
    RM_RETURN_IF_ERROR(TrainEpoch(epoch, first_step));
    RM_RETURN_IF_ERROR(Evaluate(epoch));
    first_step = 0;
  }
  SetPosition({options_.epochs, 0, Phase::kDone});
  return absl::OkStatus();
}

absl::Status Trainer::TrainEpoch(uint32_t epoch, uint32_t first_step) {
  const uint32_t steps = options_.plan.steps_per_epoch();
  epoch_start_ = Clock::now();
  stop_.reset();
  for (uint32_t step = first_step; step < steps; ++step) {
    RM_RETURN_IF_ERROR(EnqueueStep(epoch, step));
    // The last state of the epoch must be ready before the evaluation, and before the clock stops.
    const bool is_last = step + 1 == steps;
    RM_RETURN_IF_ERROR(Collect(/*all=*/is_last));
    if (StopsBefore(step + 1)) {
      RM_RETURN_IF_ERROR(Collect(/*all=*/true));
      return absl::CancelledError(absl::StrFormat(
          "stopped after step %d of epoch %d, as asked for in step %d", step, epoch, *stop_));
    }
  }
  return absl::OkStatus();
}

absl::Status Trainer::EnqueueStep(uint32_t epoch, uint32_t step) {
  StepWork work;
  work.epoch = epoch;
  work.slice = options_.plan.Slice(options_.plan.Batch(step), communicator_->rank(),
                                   communicator_->world_size());
  const uint32_t flags = flags_.exchange(0);
  for (int i = 0; i < tail::kFlagCount; ++i) work.flags[i] = flags >> i & 1;
  RM_RETURN_IF_ERROR(backend_->ComputeGradient(work));
  RM_RETURN_IF_ERROR(communicator_->AllReduceSum(backend_->reduce_buffer()));
  RM_RETURN_IF_ERROR(backend_->ApplyUpdate());
  FinishedStep published;
  published.epoch = epoch;
  published.step = step;
  in_flight_.push_back(std::move(published));
  return absl::OkStatus();
}

absl::Status Trainer::Evaluate(uint32_t epoch) {
  SetPosition({epoch, options_.plan.steps_per_epoch(), Phase::kEvaluate});
  const PositionRange whole{0, options_.num_test_samples};
  RM_RETURN_IF_ERROR(backend_->ComputeEvaluation(
      options_.plan.Slice(whole, communicator_->rank(), communicator_->world_size())));
  RM_RETURN_IF_ERROR(communicator_->AllReduceSum(backend_->tail_buffer()));
  RM_RETURN_IF_ERROR(backend_->FinishEvaluation());
  FinishedStep published;
  published.epoch = epoch;
  published.evaluation = true;
  in_flight_.push_back(std::move(published));
  RM_RETURN_IF_ERROR(Collect(/*all=*/true));
  if (communicator_->rank() == 0) {
    RM_ASSIGN_OR_RETURN(const TrainState state, backend_->GetState());
    RM_RETURN_IF_ERROR(observer_->OnEpochEnd(epoch, state));
  }
  SetPosition({epoch + 1, 0, Phase::kTrain});
  return absl::OkStatus();
}

// The death of a peer can be invisible to the device, which then waits for ever: so the wait is cut
// into short ones.
absl::Status Trainer::Collect(bool all) {
  const absl::Time deadline = absl::Now() + options_.step_timeout;
  for (;;) {
    const absl::Duration left = deadline - absl::Now();
    auto records = backend_->Collect(all, std::min(left, kPollInterval));
    if (records.ok()) {
      for (ReducedRecord& record : *records) RM_RETURN_IF_ERROR(Finish(std::move(record)));
      if (!all || in_flight_.empty()) return communicator_->Poll();
      return absl::InternalError(
          absl::StrFormat("%d records were published and never came", in_flight_.size()));
    }
    if (!absl::IsDeadlineExceeded(records.status()) || left <= kPollInterval) {
      return records.status();
    }
    RM_RETURN_IF_ERROR(communicator_->Poll());
  }
}

absl::Status Trainer::Finish(ReducedRecord reduced) {
  if (in_flight_.empty()) return absl::InternalError("a record came that was not published");
  FinishedStep finished = std::move(in_flight_.front());
  in_flight_.pop_front();
  finished.reduced = std::move(reduced);
  if (!finished.evaluation) {
    const uint32_t next = finished.step + 1;
    if (next == options_.plan.steps_per_epoch()) {
      finished.epoch_seconds = std::chrono::duration<double>(Clock::now() - epoch_start_).count();
    }
    if (finished.reduced.record.flags[tail::kFlagStop] > 0 && !stop_) stop_ = finished.step;
    SetPosition({finished.epoch, next, Phase::kTrain});
    steps_done_.fetch_add(1, std::memory_order_relaxed);
  }
  observer_->OnStep(finished);
  return absl::OkStatus();
}

// Records come late from an asynchronous backend, and not equally late on every rank. What all
// ranks know alike: after max_in_flight() - 1 more steps, and at the end of the epoch, each of them
// has the record. There they stop.
bool Trainer::StopsBefore(uint32_t step) const {
  if (!stop_) return false;
  const uint32_t agreed = *stop_ + static_cast<uint32_t>(backend_->max_in_flight());
  return step >= std::min(agreed, options_.plan.steps_per_epoch());
}

}  // namespace ringmaster
