#include "worker/fault_backend.h"

#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/logging.h"

namespace ringmaster {
namespace {

enum class Fault { kDropSample, kFailStep, kHangStep, kSlowStep };
constexpr int kDropInStep = 3;

class FaultBackend : public Backend {
 public:
  FaultBackend(Fault fault, int argument, std::unique_ptr<Backend> backend)
      : fault_(fault), argument_(argument), backend_(std::move(backend)) {}

  std::string name() const override { return backend_->name(); }
  std::string description() const override { return backend_->description(); }
  absl::Status SetWorld(int rank, int world_size) override {
    rank_ = rank;
    world_size_ = world_size;
    return backend_->SetWorld(rank, world_size);
  }
  absl::Status SetState(const TrainState& state) override { return backend_->SetState(state); }
  absl::StatusOr<TrainState> GetState() override { return backend_->GetState(); }

  absl::Status ComputeGradient(const StepWork& work) override {
    StepWork changed = work;
    const int step = work.epoch == 0 ? steps_++ : -1;
    if (fault_ == Fault::kDropSample && step == kDropInStep && rank_ == 0) --changed.slice.count;
    if (fault_ == Fault::kSlowStep) absl::SleepFor(absl::Milliseconds(argument_));
    if (fault_ == Fault::kFailStep && step == argument_ && rank_ == world_size_ - 1) {
      return absl::InternalError(absl::StrCat("injected fault in step ", step));
    }
    if (fault_ == Fault::kHangStep && step == argument_ && rank_ == world_size_ - 1) {
      absl::SleepFor(absl::InfiniteDuration());
    }
    return backend_->ComputeGradient(changed);
  }

  absl::Status ApplyUpdate() override { return backend_->ApplyUpdate(); }
  absl::Status ComputeEvaluation(PositionRange slice) override {
    return backend_->ComputeEvaluation(slice);
  }
  absl::Status FinishEvaluation() override { return backend_->FinishEvaluation(); }
  absl::StatusOr<std::vector<ReducedRecord>> Collect(bool all, absl::Duration timeout) override {
    return backend_->Collect(all, timeout);
  }
  int max_in_flight() const override { return backend_->max_in_flight(); }
  absl::StatusOr<std::vector<uint8_t>> Predict(Split split, PositionRange slice) override {
    return backend_->Predict(split, slice);
  }
  DeviceSpan reduce_buffer() override { return backend_->reduce_buffer(); }
  DeviceSpan tail_buffer() override { return backend_->tail_buffer(); }
  void* stream() override { return backend_->stream(); }
  absl::Status ReadBuffer(DeviceSpan span, void* host) override {
    return backend_->ReadBuffer(span, host);
  }
  absl::Status WriteBuffer(const void* host, DeviceSpan span) override {
    return backend_->WriteBuffer(host, span);
  }
  void Poison() noexcept override { backend_->Poison(); }

 private:
  const Fault fault_;
  const int argument_;
  const std::unique_ptr<Backend> backend_;
  int rank_ = 0;
  int world_size_ = 1;
  int steps_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> InjectFault(const std::string& fault,
                                                     std::unique_ptr<Backend> backend) {
  if (fault.empty()) return backend;
  const std::vector<std::string> parts = absl::StrSplit(fault, ':');
  int argument = 0;
  const bool with_number = parts.size() == 2 && absl::SimpleAtoi(parts[1], &argument);
  Fault kind;
  if (fault == "drop-sample") {
    kind = Fault::kDropSample;
  } else if (parts[0] == "fail-step" && with_number) {
    kind = Fault::kFailStep;
  } else if (parts[0] == "hang-step" && with_number) {
    kind = Fault::kHangStep;
  } else if (parts[0] == "slow-step" && with_number) {
    kind = Fault::kSlowStep;
  } else {
    return absl::InvalidArgumentError(absl::StrCat(
        "RINGMASTER_FAULT: wants drop-sample, fail-step:N, hang-step:N or slow-step:MS, got '",
        fault, "'"));
  }
  spdlog::warn("RINGMASTER_FAULT={}: this run misbehaves on purpose", fault);
  return std::make_unique<FaultBackend>(kind, argument, std::move(backend));
}

}  // namespace ringmaster
