// What the trainer tests share: an observer that remembers, and a backend without arithmetic whose
// records come late.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "worker/trainer.h"

namespace ringmaster {

class RecordingObserver : public TrainingObserver {
 public:
  void OnStep(const FinishedStep& step) override {
    steps.push_back(step);
    if (on_step) on_step(step);
  }
  bool WantsState() override { return wants_state && !steps.empty() && wants_state(steps.back()); }
  void OnState(const TrainPosition& position, TrainState state) override {
    positions.push_back(position);
    states.push_back(std::move(state));
  }

  std::vector<FinishedStep> steps;
  std::vector<TrainPosition> positions;  // of the states
  std::vector<TrainState> states;
  std::function<void(const FinishedStep&)> on_step;
  std::function<bool(const FinishedStep&)> wants_state;
};

// Has one parameter, which counts updates, and gathers nothing: its records hold the slice's length
// and the flags. As an asynchronous backend it hands records out late, `lag` of them being held
// back until somebody asks for all.
class LateBackend : public Backend {
 public:
  static constexpr int kMaxInFlight = 3;

  explicit LateBackend(int lag = 0) : lag_(lag) {}

  std::string name() const override { return "late"; }
  std::string description() const override { return "late"; }
  absl::Status SetWorld(int /*rank*/, int world_size) override {
    buffer_.assign(1 + tail::Size(world_size), 0.0f);
    poisoned_ = false;
    return absl::OkStatus();
  }
  absl::Status SetState(const TrainState& state) override {
    state_ = state;
    return absl::OkStatus();
  }
  absl::StatusOr<TrainState> GetState() override { return state_; }
  absl::Status ComputeGradient(const StepWork& work) override {
    if (!gradient_status.ok()) return gradient_status;
    StepRecord record;
    std::copy(std::begin(work.flags), std::end(work.flags), record.flags);
    return Contribute(record, work.slice);
  }
  absl::Status ApplyUpdate() override {
    if (poisoned_) return absl::OkStatus();
    ++state_.step;
    return FinishEvaluation();
  }
  absl::Status ComputeEvaluation(PositionRange slice) override { return Contribute({}, slice); }
  absl::Status FinishEvaluation() override {
    published_.push_back({ReadRecord(buffer_.data() + 1), {}});
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<ReducedRecord>> Collect(bool all,
                                                     absl::Duration /*timeout*/) override {
    if (!collect_status.ok()) return collect_status;
    const size_t held_back = all ? 0 : std::min<size_t>(lag_, published_.size());
    std::vector<ReducedRecord> records(published_.begin(), published_.end() - held_back);
    published_.erase(published_.begin(), published_.end() - held_back);
    return records;
  }
  int max_in_flight() const override { return kMaxInFlight; }
  absl::StatusOr<std::vector<uint8_t>> Predict(Split, PositionRange) override {
    return absl::UnimplementedError("nothing to predict");
  }
  DeviceSpan reduce_buffer() override { return {buffer_.data(), buffer_.size()}; }
  DeviceSpan tail_buffer() override { return {buffer_.data() + 1, buffer_.size() - 1}; }
  void* stream() override { return nullptr; }
  absl::Status ReadBuffer(DeviceSpan span, void* host) override {
    std::memcpy(host, span.data, span.bytes());
    return absl::OkStatus();
  }
  absl::Status WriteBuffer(const void* host, DeviceSpan span) override {
    std::memcpy(span.data, host, span.bytes());
    return absl::OkStatus();
  }
  void Poison() noexcept override { poisoned_ = true; }

  bool poisoned() const { return poisoned_; }

  // What the methods return, when not OK.
  absl::Status gradient_status;
  absl::Status collect_status;

 private:
  absl::Status Contribute(StepRecord record, PositionRange slice) {
    record.samples = slice.count;
    std::fill(buffer_.begin(), buffer_.end(), 0.0f);
    WriteRecord(record, buffer_.data() + 1);
    return absl::OkStatus();
  }

  const int lag_;
  TrainState state_;
  std::vector<float> buffer_;
  std::vector<ReducedRecord> published_;
  std::atomic<bool> poisoned_{false};
};

}  // namespace ringmaster
