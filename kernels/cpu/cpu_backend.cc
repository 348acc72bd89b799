#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "kernels/backend_options.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/exact_perceptron.h"
#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/network.h"
#include "kernels/cpu/perceptron.h"
#include "kernels/tail_io.h"

namespace ringmaster {
namespace {

using Clock = std::chrono::steady_clock;

float Microseconds(Clock::duration duration) {
  return std::chrono::duration<float, std::micro>(duration).count();
}

constexpr size_t kCacheLine = 64;

void Prefetch(const uint8_t* bytes, size_t count) {
  for (size_t i = 0; i < count; i += kCacheLine) __builtin_prefetch(bytes + i);
}

// Gradients, then the tail.
class ReduceBuffer {
 public:
  ReduceBuffer() = default;
  ReduceBuffer(Element element, size_t num_parameters, int world_size)
      : tail_size_(TailSize(element, world_size)) {
    const size_t count = num_parameters + tail_size_;
    if (element == Element::kInt64) {
      integers_ = AlignedBuffer<int64_t>(count);
      whole_ = {integers_.data(), count};
    } else {
      floats_ = AlignedBuffer<float>(count);
      whole_ = {floats_.data(), count};
    }
  }

  DeviceSpan whole() const { return whole_; }
  DeviceSpan gradients() const {
    DeviceSpan part = whole_;
    part.count -= tail_size_;
    return part;
  }
  DeviceSpan tail() const { return whole_.Last(tail_size_); }

 private:
  AlignedBuffer<float> floats_;  // one of the two is empty
  AlignedBuffer<int64_t> integers_;
  DeviceSpan whole_;
  size_t tail_size_ = 0;
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(const BackendOptions& options, const Dataset& dataset,
             std::unique_ptr<Network> network);

  // oneDNN compiles its kernels at their first use, which takes longer than a hundred steps.
  absl::Status WarmUp();

  std::string name() const override { return "cpu"; }
  std::string description() const override;
  absl::Status SetWorld(int rank, int world_size) override;
  absl::Status SetState(const TrainState& state) override;
  absl::StatusOr<TrainState> GetState() override { return state_; }
  absl::Status ComputeGradient(const StepWork& work) override;
  absl::Status ApplyUpdate() override;
  absl::Status ComputeEvaluation(PositionRange slice) override;
  absl::Status FinishEvaluation() override;
  absl::StatusOr<std::vector<ReducedRecord>> Collect(bool all, absl::Duration timeout) override;
  int max_in_flight() const override { return 1; }
  absl::StatusOr<std::vector<uint8_t>> Predict(Split split, PositionRange slice) override;
  DeviceSpan reduce_buffer() override { return buffer_.whole(); }
  DeviceSpan tail_buffer() override { return buffer_.tail(); }
  void* stream() override { return nullptr; }
  absl::Status ReadBuffer(DeviceSpan span, void* host) override;
  absl::Status WriteBuffer(const void* host, DeviceSpan span) override;
  void Poison() noexcept override { poisoned_ = true; }

 private:
  const DatasetSplit& split(Split which) const {
    return which == Split::kTrain ? dataset_.train : dataset_.test;
  }
  absl::Status CheckSlice(const char* what, PositionRange slice, uint32_t num_samples) const;
  void ChooseSamples(const Permutation* order, PositionRange chunk);
  void Gather(const DatasetSplit& split, const Permutation* order, PositionRange chunk,
              StepRecord* record);
  void CountChunk(int rows, StepRecord* record) const;
  absl::Status ComputeChunks(const StepWork& work, StepRecord* record);
  absl::Status OutOfRange() const;

  const BackendOptions options_;
  const Dataset& dataset_;
  const size_t num_parameters_;
  const std::unique_ptr<Network> network_;
  std::vector<uint32_t> samples_;  // ids of the current chunk's samples
  TrainState state_;
  ReduceBuffer buffer_;
  int rank_ = 0;
  int world_size_ = 1;
  std::vector<ReducedRecord> published_;
  std::atomic<bool> poisoned_ = false;
  bool out_of_range_ = false;  // a gradient was: nothing is applied any more

  Clock::duration gradient_time_{};
  Clock::time_point gradient_end_;
  std::optional<RankTimes> measured_;  // of the last finished step
};

CpuBackend::CpuBackend(const BackendOptions& options, const Dataset& dataset,
                       std::unique_ptr<Network> network)
    : options_(options),
      dataset_(dataset),
      num_parameters_(options.model.num_parameters()),
      network_(std::move(network)),
      samples_(network_->max_rows()),
      state_(InitialState(options.model, options.plan.seed)),
      buffer_(network_->element(), num_parameters_, 1) {}

absl::Status CpuBackend::WarmUp() {
  RM_RETURN_IF_ERROR(network_->Forward(state_.parameters.data(), network_->max_rows()));
  for (const bool first_chunk : {true, false}) {
    RM_RETURN_IF_ERROR(
        network_->Backward(state_.parameters.data(), first_chunk, buffer_.gradients()));
  }
  return SetWorld(0, 1);
}

std::string CpuBackend::description() const {
  return absl::StrCat("CPU, ", network_->description());
}

absl::Status CpuBackend::SetWorld(int rank, int world_size) {
  if (world_size > tail::kMaxWorldSize || rank < 0 || rank >= world_size) {
    return absl::InvalidArgumentError(
        absl::StrFormat("rank %d of world size %d: wanted a rank in [0, world size) and a world "
                        "size of at most %d",
                        rank, world_size, tail::kMaxWorldSize));
  }
  buffer_ = ReduceBuffer(network_->element(), num_parameters_, world_size);
  rank_ = rank;
  world_size_ = world_size;
  measured_.reset();
  published_.clear();
  poisoned_ = false;
  out_of_range_ = false;
  return absl::OkStatus();
}

absl::Status CpuBackend::SetState(const TrainState& state) {
  if (state.parameters.size() != num_parameters_ || state.first_moment.size() != num_parameters_ ||
      state.second_moment.size() != num_parameters_) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "the state has %d parameters, %d first and %d second moments, but the model has %d of "
        "each: was it trained with other layers?",
        state.parameters.size(), state.first_moment.size(), state.second_moment.size(),
        num_parameters_));
  }
  state_ = state;
  return absl::OkStatus();
}

absl::Status CpuBackend::CheckSlice(const char* what, PositionRange slice,
                                    uint32_t num_samples) const {
  if (uint64_t{slice.first} + slice.count <= num_samples) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "rank %d of %d at step %d: %s slice [%d, %d) does not lie in [0, %d)", rank_, world_size_,
      state_.step, what, slice.first, uint64_t{slice.first} + slice.count, num_samples));
}

void CpuBackend::ChooseSamples(const Permutation* order, PositionRange chunk) {
  for (uint32_t row = 0; row < chunk.count; ++row) {
    const uint32_t position = chunk.first + row;
    samples_[row] = order != nullptr ? (*order)(position) : position;
  }
}

// The only place where pixels are read: what the record says was gathered, was.
void CpuBackend::Gather(const DatasetSplit& split, const Permutation* order, PositionRange chunk,
                        StepRecord* record) {
  // Samples lie all over the data set: ask for an image well before its turn.
  constexpr uint32_t kLookAhead = 4;
  ChooseSamples(order, chunk);
  const size_t pixels = options_.model.inputs();
  for (uint32_t row = 0; row < std::min(kLookAhead, chunk.count); ++row) {
    Prefetch(&split.images[samples_[row] * pixels], pixels);
  }
  for (uint32_t row = 0; row < chunk.count; ++row) {
    if (row + kLookAhead < chunk.count) {
      Prefetch(&split.images[samples_[row + kLookAhead] * pixels], pixels);
    }
    const uint32_t sample = samples_[row];
    network_->Load(row, &split.images[sample * pixels], split.labels[sample]);
    record->digest += SampleFingerprint(sample);
    ++record->samples;
  }
}

void CpuBackend::CountChunk(int rows, StepRecord* record) const {
  for (int row = 0; row < rows; ++row) {
    const float loss = network_->loss(row);
    if (std::isfinite(loss)) {
      record->loss_sum_quanta += tail::QuantizeLoss(loss);
    } else {
      ++record->non_finite;
    }
    record->correct += network_->is_correct(row) ? 1 : 0;
  }
}

absl::Status CpuBackend::ComputeChunks(const StepWork& work, StepRecord* record) {
  const Permutation order = options_.plan.Order(work.epoch);
  const uint32_t chunk_rows = network_->max_rows();
  for (uint32_t done = 0; done < work.slice.count; done += chunk_rows) {
    const PositionRange chunk{work.slice.first + done,
                              std::min(chunk_rows, work.slice.count - done)};
    Gather(dataset_.train, &order, chunk, record);
    RM_RETURN_IF_ERROR(network_->Forward(state_.parameters.data(), chunk.count));
    RM_RETURN_IF_ERROR(
        network_->Backward(state_.parameters.data(), done == 0, buffer_.gradients()));
    CountChunk(chunk.count, record);
  }
  if (work.slice.count > 0) {
    record->out_of_range = network_->FinishGradients(buffer_.gradients()) ? 0 : 1;
  } else {
    std::memset(buffer_.gradients().data, 0, buffer_.gradients().bytes());
  }
  return absl::OkStatus();
}

absl::Status CpuBackend::ComputeGradient(const StepWork& work) {
  const Clock::time_point start = Clock::now();
  RM_RETURN_IF_ERROR(CheckSlice("training", work.slice, options_.plan.num_samples));
  StepRecord record;
  std::copy(std::begin(work.flags), std::end(work.flags), record.flags);
  RM_RETURN_IF_ERROR(ComputeChunks(work, &record));
  WriteTail(record, measured_.value_or(RankTimes()), rank_, buffer_.tail());
  gradient_end_ = Clock::now();
  gradient_time_ = gradient_end_ - start;
  return absl::OkStatus();
}

absl::Status CpuBackend::OutOfRange() const {
  return OutOfRangeError(
      absl::StrFormat("rank %d of %d at step %d", rank_, world_size_, state_.step));
}

absl::Status CpuBackend::ApplyUpdate() {
  if (poisoned_) return absl::OkStatus();
  const Clock::time_point start = Clock::now();
  ReducedRecord reduced = ReadTail(buffer_.tail(), world_size_);
  out_of_range_ = out_of_range_ || reduced.record.out_of_range > 0;
  if (out_of_range_) return OutOfRange();
  network_->Update(options_.optimizer, reduced.record.samples, buffer_.gradients(), &state_);
  published_.push_back(std::move(reduced));
  measured_ = RankTimes{Microseconds(gradient_time_ + (Clock::now() - start)),
                        Microseconds(start - gradient_end_)};
  return absl::OkStatus();
}

absl::Status CpuBackend::ComputeEvaluation(PositionRange slice) {
  RM_RETURN_IF_ERROR(CheckSlice("evaluation", slice, dataset_.test.num_samples));
  StepRecord record;
  const uint32_t chunk_rows = network_->max_rows();
  for (uint32_t done = 0; done < slice.count; done += chunk_rows) {
    const PositionRange chunk{slice.first + done, std::min(chunk_rows, slice.count - done)};
    Gather(dataset_.test, nullptr, chunk, &record);
    RM_RETURN_IF_ERROR(network_->Forward(state_.parameters.data(), chunk.count));
    CountChunk(chunk.count, &record);
  }
  WriteTail(record, RankTimes(), rank_, buffer_.tail());
  return absl::OkStatus();
}

absl::Status CpuBackend::FinishEvaluation() {
  if (!poisoned_) published_.push_back(ReadTail(buffer_.tail(), world_size_));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ReducedRecord>> CpuBackend::Collect(bool /*all*/,
                                                               absl::Duration /*timeout*/) {
  if (published_.empty() && out_of_range_) return OutOfRange();
  if (published_.empty() && poisoned_) {
    return absl::AbortedError(absl::StrFormat(
        "rank %d of %d at step %d: the backend was poisoned by an aborted all-reduce; the state "
        "is that of the last finished step, call SetWorld() to go on",
        rank_, world_size_, state_.step));
  }
  return std::exchange(published_, {});
}

absl::StatusOr<std::vector<uint8_t>> CpuBackend::Predict(Split which, PositionRange slice) {
  RM_RETURN_IF_ERROR(CheckSlice("prediction", slice, split(which).num_samples));
  std::vector<uint8_t> classes;
  classes.reserve(slice.count);
  StepRecord unused;
  const uint32_t chunk_rows = network_->max_rows();
  for (uint32_t done = 0; done < slice.count; done += chunk_rows) {
    const PositionRange chunk{slice.first + done, std::min(chunk_rows, slice.count - done)};
    Gather(split(which), nullptr, chunk, &unused);
    RM_RETURN_IF_ERROR(network_->Forward(state_.parameters.data(), chunk.count));
    for (uint32_t row = 0; row < chunk.count; ++row) {
      classes.push_back(static_cast<uint8_t>(network_->prediction(row)));
    }
  }
  return classes;
}

absl::Status CpuBackend::ReadBuffer(DeviceSpan span, void* host) {
  if (span.count > 0) std::memcpy(host, span.data, span.bytes());
  return absl::OkStatus();
}

absl::Status CpuBackend::WriteBuffer(const void* host, DeviceSpan span) {
  if (span.count > 0) std::memcpy(span.data, host, span.bytes());
  return absl::OkStatus();
}

// Part of the pixels that is not zero, over the first few thousand images.
double PixelDensity(const Dataset& dataset) {
  const size_t images = std::min<size_t>(dataset.train.num_samples, 2048);
  const size_t pixels = images * dataset.pixels();
  const auto first = dataset.train.images.begin();
  const auto zeros = std::count(first, first + pixels, uint8_t{0});
  return 1.0 - static_cast<double>(zeros) / static_cast<double>(std::max<size_t>(pixels, 1));
}

bool WantsSparseInput(CpuTuning::Input input, const Dataset& dataset) {
  if (input == CpuTuning::Input::kAuto) return PixelDensity(dataset) <= kSparseDensity;
  return input == CpuTuning::Input::kSparse;
}

std::unique_ptr<Network> MakeNetwork(const BackendOptions& options, const Dataset& dataset,
                                     const CpuTuning& tuning) {
  if (options.reproducible) {
    const ExactKernels& kernels =
        tuning.exact_kernels != nullptr ? *tuning.exact_kernels : *AvailableExactKernels().front();
    return std::make_unique<ExactPerceptron>(options.model, options.threads, kernels);
  }
  const VectorKernels& kernels =
      tuning.kernels != nullptr ? *tuning.kernels : *AvailableVectorKernels().front();
  return std::make_unique<Perceptron>(options.model, WantsSparseInput(tuning.input, dataset),
                                      options.threads, kernels);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateTunedCpuBackend(const BackendOptions& options,
                                                               const Dataset& dataset,
                                                               const CpuTuning& tuning) {
  RM_RETURN_IF_ERROR(CheckBackendOptions(options, dataset));
  auto backend =
      std::make_unique<CpuBackend>(options, dataset, MakeNetwork(options, dataset, tuning));
  RM_RETURN_IF_ERROR(backend->WarmUp());
  return backend;
}

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const BackendOptions& options,
                                                          const Dataset& dataset) {
  return CreateTunedCpuBackend(options, dataset, CpuTuning{});
}

}  // namespace ringmaster
