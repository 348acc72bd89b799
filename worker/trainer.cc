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

}  // namespace

Trainer::Trainer(const TrainerOptions& options, Backend* backend, Communicator* communicator,
                 TrainingObserver* observer)
    : options_(options),
      timeline_(options.plan, options.epochs),
      backend_(backend),
      communicator_(communicator),
      observer_(observer) {}

TrainPosition Trainer::position() const {
  return PositionAt(timeline_, position_.load(std::memory_order_relaxed));
}

void Trainer::RaiseFlag(tail::Flag flag) { flags_.fetch_or(1u << flag); }

void Trainer::Abort() noexcept {
  aborted_ = true;
  backend_->Poison();
  communicator_->Abort();
}

absl::Status Trainer::Run(TrainPosition from) {
  RM_ASSIGN_OR_RETURN(const uint64_t index, IndexOf(timeline_, from));
  in_flight_.clear();
  position_ = index;
  if (index == timeline_.end()) return absl::OkStatus();
  const absl::Status status = aborted_ ? absl::AbortedError("aborted") : TrainFrom(position());
  if (!status.ok() && !absl::IsCancelled(status)) return AfterError(status);
  AwaitOthers();
  return status;
}

// A rank that has its sum may be ahead of others that are still waiting for theirs, and would lose
// it if this one closed its connections: so nobody goes before all have come here. Whether that
// works out changes nothing for this rank any more.
void Trainer::AwaitOthers() {
  if (communicator_->world_size() == 1) return;
  communicator_->AllReduceSum(backend_->tail_buffer()).IgnoreError();
}

absl::Status Trainer::AfterError(const absl::Status& status) {
  const TrainPosition at = position();
  backend_->Poison();
  communicator_->Abort();
  CollectApplied();
  return absl::Status(
      aborted_ ? absl::StatusCode::kAborted : status.code(),
      absl::StrFormat("rank %d of %d, epoch %d, %s: %s", communicator_->rank(),
                      communicator_->world_size(), at.epoch,
                      at.phase == Phase::kTrain ? absl::StrFormat("step %d", at.step)
                                                : std::string("evaluation"),
                      status.message()));
}

// Steps that were applied before the poison came count, though nobody waited for their records.
void Trainer::CollectApplied() {
  // Waits for what is enqueued: until then a step may be applied whose record has not been seen.
  if (!backend_->GetState().ok()) return;
  for (;;) {
    auto records = backend_->Collect(/*all=*/true, kPollInterval);
    if (!records.ok() || records->empty()) return;
    for (ReducedRecord& record : *records) {
      if (!Finish(std::move(record)).ok()) return;
    }
  }
}

absl::Status Trainer::TrainFrom(TrainPosition from) {
  uint32_t first_step = from.step;
  for (uint32_t epoch = from.epoch; epoch < options_.epochs; ++epoch) {
    RM_RETURN_IF_ERROR(TrainEpoch(epoch, first_step));
    RM_RETURN_IF_ERROR(Evaluate(epoch));
    if (communicator_->rank() == 0 && epoch + 1 < options_.epochs) {
      RM_RETURN_IF_ERROR(HandOverState());
    }
    first_step = 0;
  }
  return absl::OkStatus();
}

// With every record collected the position is exactly that of the state.
absl::Status Trainer::HandOverState() {
  RM_RETURN_IF_ERROR(Collect(/*all=*/true));
  RM_ASSIGN_OR_RETURN(TrainState state, backend_->GetState());
  observer_->OnState(position(), std::move(state));
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
    if (communicator_->rank() == 0 && !is_last && observer_->WantsState()) {
      RM_RETURN_IF_ERROR(HandOverState());
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
  const PositionRange whole{0, options_.num_test_samples};
  RM_RETURN_IF_ERROR(backend_->ComputeEvaluation(
      options_.plan.Slice(whole, communicator_->rank(), communicator_->world_size())));
  RM_RETURN_IF_ERROR(communicator_->AllReduceSum(backend_->tail_buffer()));
  RM_RETURN_IF_ERROR(backend_->FinishEvaluation());
  FinishedStep published;
  published.epoch = epoch;
  published.evaluation = true;
  in_flight_.push_back(std::move(published));
  return Collect(/*all=*/true);
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
    if (finished.reduced.record.flags[tail::kFlagRegroup] > 0 && !stop_) stop_ = finished.step;
    steps_done_.fetch_add(1, std::memory_order_relaxed);
  }
  position_ = timeline_.IndexOf({finished.epoch, finished.step, finished.evaluation}) + 1;
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
