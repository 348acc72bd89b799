#include "kernels/cuda/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/backend_options.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/exact_perceptron.h"
#include "kernels/cuda/handles.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/perceptron.h"
#include "kernels/cuda/record_ring.h"
#include "kernels/cuda/updater.h"
#include "kernels/tail_io.h"

namespace ringmaster {
namespace {

// A step enqueues some 15 operations: this many steps stay well below the about 1,000 that fit in
// CUDA's launch queue, past which a launch would block.
constexpr int kMaxInFlight = 32;
// A backstop for calls that wait.
constexpr absl::Duration kWaitTimeout = absl::Seconds(60);

// One split in device memory.
struct DeviceSplit {
  DeviceArray<uint8_t> images;  // [num_samples, pixels]
  DeviceArray<uint8_t> labels;  // [num_samples]
  uint32_t num_samples = 0;
};

class CudaBackend final : public Backend {
 public:
  CudaBackend(const BackendOptions& options, const CudaTuning& tuning)
      : options_(options), tuning_(tuning), num_parameters_(options.model.num_parameters()) {}
  ~CudaBackend() override;

  absl::Status Initialize(const Dataset& dataset);

  std::string name() const override { return "cuda"; }
  std::string description() const override { return description_; }
  absl::Status SetWorld(int rank, int world_size) override;
  absl::Status SetState(const TrainState& state) override;
  absl::StatusOr<TrainState> GetState() override;
  absl::Status ComputeGradient(const StepWork& work) override;
  absl::Status ApplyUpdate() override;
  absl::Status ComputeEvaluation(PositionRange slice) override;
  absl::Status FinishEvaluation() override;
  absl::StatusOr<std::vector<ReducedRecord>> Collect(bool all, absl::Duration timeout) override;
  int max_in_flight() const override { return kMaxInFlight; }
  absl::StatusOr<std::vector<uint8_t>> Predict(Split split, PositionRange slice) override;
  DeviceSpan reduce_buffer() override { return span_; }
  DeviceSpan tail_buffer() override { return tail(); }
  void* stream() override { return stream_.get(); }
  absl::Status ReadBuffer(DeviceSpan span, void* host) override;
  absl::Status WriteBuffer(const void* host, DeviceSpan span) override;
  void Poison() noexcept override { SetPoisoned(1); }

 private:
  Element element() const { return options_.reproducible ? Element::kInt64 : Element::kFloat32; }
  DeviceSpan tail() const { return span_.Last(span_.count - num_parameters_); }
  const DeviceSplit& split(Split which) const { return which == Split::kTrain ? train_ : test_; }
  // The device reads this word while the host writes it.
  void SetPoisoned(uint32_t value) noexcept {
    std::atomic_ref<uint32_t>(*poisoned_.host()).store(value);
  }
  uint32_t poison() const { return std::atomic_ref<uint32_t>(*poisoned_.host()).load(); }

  absl::Status UseDevice() const;
  absl::Status Describe();
  absl::Status Allocate();
  absl::Status Upload(const DatasetSplit& from, DeviceSplit* to);
  absl::Status WarmUp();
  absl::Status Wait() const;
  template <typename T>
  absl::Status Copy(const T* from, size_t count, T* to) const;
  absl::Status CheckSlice(const char* what, PositionRange slice, uint32_t num_samples) const;
  // The chunk of `slice` that begins `done` samples into it.
  PositionRange Chunk(PositionRange slice, uint32_t done) const;
  absl::Status Forward(const DeviceSplit& split, std::optional<uint32_t> epoch,
                       PositionRange chunk);
  absl::Status ClearRecord();
  absl::Status WriteTail(const StepWork& work, RankTimes times);
  absl::Status Publish(DeviceState* state);
  absl::Status Poisoned(uint32_t poison) const;
  absl::Status TakeFinished();

  const BackendOptions options_;
  const CudaTuning tuning_;
  const size_t num_parameters_;
  std::string description_;
  CudaStream stream_;  // ended after everything that uses it
  std::unique_ptr<CudaNetwork> network_;
  std::unique_ptr<CudaUpdater> updater_;
  DeviceSplit train_;
  DeviceSplit test_;
  DeviceState state_;
  DeviceArray<float> float_buffer_;         // gradients, then the tail: one of the two
  DeviceArray<int64_t> exact_buffer_;       // is empty,
  DeviceSpan span_;                         // and this is the other
  DeviceArray<cuda::DeviceRecord> record_;  // [1]: this rank's, of the step being computed
  MappedArray<uint32_t> poisoned_;          // [1]
  std::optional<RecordRing> ring_;
  int rank_ = 0;
  int world_size_ = 1;
  std::vector<ReducedRecord> finished_;  // taken from the ring, not yet handed over
  RankTimes measured_;                   // of the last step known to be finished
};

// Memory must not be freed under a kernel that uses it. After a fault, or with a peer that never
// answers, it is freed all the same.
CudaBackend::~CudaBackend() {
  if (UseDevice().ok() && stream_.get() != nullptr) static_cast<void>(Wait());
}

absl::Status CudaBackend::Initialize(const Dataset& dataset) {
  RM_RETURN_IF_ERROR(UseDevice());
  RM_RETURN_IF_ERROR(Describe());
  cudaStream_t stream = nullptr;
  RM_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  stream_ = CudaStream(stream);
  RM_RETURN_IF_ERROR(Upload(dataset.train, &train_));
  RM_RETURN_IF_ERROR(Upload(dataset.test, &test_));
  RM_RETURN_IF_ERROR(Allocate());
  RM_RETURN_IF_ERROR(WarmUp());
  return SetState(InitialState(options_.model, options_.plan.seed));
}

// A thread's current device is its own, and a backend may pass from one thread to another.
absl::Status CudaBackend::UseDevice() const {
  const cudaError_t error = cudaSetDevice(options_.device);
  if (error == cudaErrorInvalidDevice) {
    return absl::InvalidArgumentError(
        absl::StrFormat("there is no CUDA device %d", options_.device));
  }
  return CudaStatus(error, "cudaSetDevice");
}

absl::Status CudaBackend::Describe() {
  cudaDeviceProp properties;
  RM_CUDA_RETURN_IF_ERROR(cudaGetDeviceProperties(&properties, options_.device));
  int runtime = 0;
  RM_CUDA_RETURN_IF_ERROR(cudaRuntimeGetVersion(&runtime));
  description_ = absl::StrFormat("%s, compute capability %d.%d, CUDA %d.%d, %s", properties.name,
                                 properties.major, properties.minor, runtime / 1000,
                                 runtime % 1000 / 10, CudaMatrix::Version());
  return absl::OkStatus();
}

absl::Status CudaBackend::Upload(const DatasetSplit& from, DeviceSplit* to) {
  to->num_samples = from.num_samples;
  RM_ASSIGN_OR_RETURN(to->images, DeviceArray<uint8_t>::Create(from.images.size()));
  RM_ASSIGN_OR_RETURN(to->labels, DeviceArray<uint8_t>::Create(from.labels.size()));
  RM_RETURN_IF_ERROR(Copy(from.images.data(), from.images.size(), to->images.data()));
  return Copy(from.labels.data(), from.labels.size(), to->labels.data());
}

absl::Status CudaBackend::Allocate() {
  RM_ASSIGN_OR_RETURN(state_.parameters, DeviceArray<float>::Create(num_parameters_));
  RM_ASSIGN_OR_RETURN(state_.first_moment, DeviceArray<float>::Create(num_parameters_));
  RM_ASSIGN_OR_RETURN(state_.second_moment, DeviceArray<float>::Create(num_parameters_));
  RM_ASSIGN_OR_RETURN(state_.step, DeviceArray<uint64_t>::Create(1));
  RM_ASSIGN_OR_RETURN(record_, DeviceArray<cuda::DeviceRecord>::Create(1));
  RM_ASSIGN_OR_RETURN(poisoned_, MappedArray<uint32_t>::Create(1));
  const uint32_t most_rows =
      std::min(tuning_.max_chunk_rows, std::max(train_.num_samples, test_.num_samples));
  if (options_.reproducible) {
    RM_ASSIGN_OR_RETURN(network_,
                        CudaExactPerceptron::Create(options_.model, most_rows, stream_.get()));
    RM_ASSIGN_OR_RETURN(updater_, CreateCudaExactUpdater(options_.optimizer, stream_.get()));
  } else {
    RM_ASSIGN_OR_RETURN(network_, CudaPerceptron::Create(options_.model, most_rows, stream_.get()));
    RM_ASSIGN_OR_RETURN(updater_, CreateCudaUpdater(options_.optimizer, stream_.get()));
  }
  return absl::OkStatus();
}

// CUDA and cuBLAS load their kernels at their first use, which takes longer than a hundred steps.
absl::Status CudaBackend::WarmUp() {
  RM_RETURN_IF_ERROR(SetState(InitialState(options_.model, options_.plan.seed)));
  RM_RETURN_IF_ERROR(SetWorld(0, 1));
  StepWork work;
  work.slice = options_.plan.Batch(0);
  RM_RETURN_IF_ERROR(ComputeGradient(work));
  RM_RETURN_IF_ERROR(ApplyUpdate());
  return SetWorld(0, 1);
}

// Asks, and does not block: a call that blocks could not give up.
absl::Status CudaBackend::Wait() const {
  const absl::Time deadline = absl::Now() + kWaitTimeout;
  cudaError_t state = cudaStreamQuery(stream_.get());
  while (state == cudaErrorNotReady) {
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(absl::StrFormat(
          "rank %d of %d: the GPU did not finish its work within %s: does an all-reduce wait for "
          "a rank that is gone?",
          rank_, world_size_, absl::FormatDuration(kWaitTimeout)));
    }
    std::this_thread::yield();
    state = cudaStreamQuery(stream_.get());
  }
  return CudaStatus(state, "cudaStreamQuery");
}

// In either direction, after what is enqueued; waits.
template <typename T>
absl::Status CudaBackend::Copy(const T* from, size_t count, T* to) const {
  RM_RETURN_IF_ERROR(Wait());
  RM_CUDA_RETURN_IF_ERROR(
      cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyDefault, stream_.get()));
  return Wait();
}

absl::Status CudaBackend::SetWorld(int rank, int world_size) {
  if (world_size > tail::kMaxWorldSize || rank < 0 || rank >= world_size) {
    return absl::InvalidArgumentError(
        absl::StrFormat("rank %d of world size %d: wanted a rank in [0, world size) and a world "
                        "size of at most %d",
                        rank, world_size, tail::kMaxWorldSize));
  }
  RM_RETURN_IF_ERROR(UseDevice());
  // A poisoned update that is still enqueued must not find the poison gone.
  RM_RETURN_IF_ERROR(Wait());
  const size_t count = num_parameters_ + TailSize(element(), world_size);
  if (options_.reproducible) {
    RM_ASSIGN_OR_RETURN(exact_buffer_, DeviceArray<int64_t>::Create(count));
    span_ = {exact_buffer_.data(), count};
  } else {
    RM_ASSIGN_OR_RETURN(float_buffer_, DeviceArray<float>::Create(count));
    span_ = {float_buffer_.data(), count};
  }
  RM_ASSIGN_OR_RETURN(ring_,
                      RecordRing::Create(kMaxInFlight, element(), world_size, stream_.get()));
  RM_CUDA_RETURN_IF_ERROR(cudaMemsetAsync(span_.data, 0, span_.bytes(), stream_.get()));
  RM_RETURN_IF_ERROR(Wait());
  rank_ = rank;
  world_size_ = world_size;
  finished_.clear();
  measured_ = RankTimes();
  SetPoisoned(0);
  return absl::OkStatus();
}

absl::Status CudaBackend::SetState(const TrainState& state) {
  if (state.parameters.size() != num_parameters_ || state.first_moment.size() != num_parameters_ ||
      state.second_moment.size() != num_parameters_) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "the state has %d parameters, %d first and %d second moments, but the model has %d of "
        "each: was it trained with other layers?",
        state.parameters.size(), state.first_moment.size(), state.second_moment.size(),
        num_parameters_));
  }
  RM_RETURN_IF_ERROR(UseDevice());
  RM_RETURN_IF_ERROR(Copy(state.parameters.data(), num_parameters_, state_.parameters.data()));
  RM_RETURN_IF_ERROR(Copy(state.first_moment.data(), num_parameters_, state_.first_moment.data()));
  RM_RETURN_IF_ERROR(
      Copy(state.second_moment.data(), num_parameters_, state_.second_moment.data()));
  return Copy(&state.step, 1, state_.step.data());
}

absl::StatusOr<TrainState> CudaBackend::GetState() {
  RM_RETURN_IF_ERROR(UseDevice());
  TrainState state;
  state.parameters.resize(num_parameters_);
  state.first_moment.resize(num_parameters_);
  state.second_moment.resize(num_parameters_);
  RM_RETURN_IF_ERROR(Copy(state_.parameters.data(), num_parameters_, state.parameters.data()));
  RM_RETURN_IF_ERROR(Copy(state_.first_moment.data(), num_parameters_, state.first_moment.data()));
  RM_RETURN_IF_ERROR(
      Copy(state_.second_moment.data(), num_parameters_, state.second_moment.data()));
  RM_RETURN_IF_ERROR(Copy(state_.step.data(), 1, &state.step));
  return state;
}

absl::Status CudaBackend::CheckSlice(const char* what, PositionRange slice,
                                     uint32_t num_samples) const {
  if (uint64_t{slice.first} + slice.count <= num_samples) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "rank %d of %d: %s slice [%d, %d) does not lie in [0, %d)", rank_, world_size_, what,
      slice.first, uint64_t{slice.first} + slice.count, num_samples));
}

PositionRange CudaBackend::Chunk(PositionRange slice, uint32_t done) const {
  return {slice.first + done, std::min(network_->max_rows(), slice.count - done)};
}

// Gathers a chunk, in the order of `epoch` or without one in file order, and computes its losses.
absl::Status CudaBackend::Forward(const DeviceSplit& split, std::optional<uint32_t> epoch,
                                  PositionRange chunk) {
  const cuda::GatherArguments gather = {
      .images = split.images.data(),
      .labels = split.labels.data(),
      .pixels = options_.model.inputs(),
      .order = options_.plan.Order(epoch.value_or(0)),
      .in_order = !epoch.has_value(),
      .chunk = chunk,
      .x = network_->x(),
      .targets = network_->targets(),
      .record = record_.data(),
  };
  RM_CUDA_RETURN_IF_ERROR(cuda::Gather(gather, stream_.get()));
  return network_->Forward(state_.parameters.data(), chunk.count, record_.data());
}

absl::Status CudaBackend::ClearRecord() {
  RM_CUDA_RETURN_IF_ERROR(cudaMemsetAsync(record_.data(), 0, record_.bytes(), stream_.get()));
  return absl::OkStatus();
}

absl::Status CudaBackend::WriteTail(const StepWork& work, RankTimes times) {
  return updater_->WriteTail(record_.data(), work, times, rank_, world_size_, tail());
}

absl::Status CudaBackend::ComputeGradient(const StepWork& work) {
  RM_RETURN_IF_ERROR(CheckSlice("training", work.slice, options_.plan.num_samples));
  RM_RETURN_IF_ERROR(UseDevice());
  RM_RETURN_IF_ERROR(ring_->Begin());
  RM_RETURN_IF_ERROR(ClearRecord());
  for (uint32_t done = 0; done < work.slice.count; done += network_->max_rows()) {
    RM_RETURN_IF_ERROR(Forward(train_, work.epoch, Chunk(work.slice, done)));
    RM_RETURN_IF_ERROR(
        network_->Backward(state_.parameters.data(), done == 0, span_, record_.data()));
  }
  if (work.slice.count == 0) {
    RM_CUDA_RETURN_IF_ERROR(
        cudaMemsetAsync(span_.data, 0, span_.bytes() - tail().bytes(), stream_.get()));
  }
  RM_RETURN_IF_ERROR(WriteTail(work, measured_));
  return ring_->GradientReady();
}

// Enqueues the copy of the reduced tail to the host and, for an update, its beginning.
absl::Status CudaBackend::Publish(DeviceState* state) {
  return updater_->Publish({.tail = tail(),
                            .world_size = world_size_,
                            .poisoned = poisoned_.device(),
                            .published = ring_->tail(),
                            .intact = ring_->intact(),
                            .state = state});
}

absl::Status CudaBackend::ApplyUpdate() {
  RM_RETURN_IF_ERROR(UseDevice());
  RM_RETURN_IF_ERROR(ring_->BeginUpdate());
  RM_RETURN_IF_ERROR(Publish(&state_));
  RM_RETURN_IF_ERROR(updater_->Update(span_, &state_));
  return ring_->Publish(/*timed=*/true);
}

absl::Status CudaBackend::ComputeEvaluation(PositionRange slice) {
  RM_RETURN_IF_ERROR(CheckSlice("evaluation", slice, test_.num_samples));
  RM_RETURN_IF_ERROR(UseDevice());
  RM_RETURN_IF_ERROR(ring_->Begin());
  RM_RETURN_IF_ERROR(ClearRecord());
  for (uint32_t done = 0; done < slice.count; done += network_->max_rows()) {
    RM_RETURN_IF_ERROR(Forward(test_, std::nullopt, Chunk(slice, done)));
  }
  return WriteTail(StepWork(), RankTimes());
}

absl::Status CudaBackend::FinishEvaluation() {
  RM_RETURN_IF_ERROR(UseDevice());
  RM_RETURN_IF_ERROR(Publish(/*state=*/nullptr));
  return ring_->Publish(/*timed=*/false);
}

// Moves what the device is through with from the ring to finished_.
absl::Status CudaBackend::TakeFinished() {
  RecordRing::Finished step;
  while (true) {
    RM_ASSIGN_OR_RETURN(const bool taken, ring_->TakeFinished(&step));
    if (!taken) return absl::OkStatus();
    if (!step.intact) continue;
    if (step.times.has_value()) measured_ = *step.times;
    finished_.push_back(std::move(step.reduced));
  }
}

absl::Status CudaBackend::Poisoned(uint32_t poison) const {
  const std::string place = absl::StrFormat("rank %d of %d", rank_, world_size_);
  if (poison == kPoisonedByRange) return OutOfRangeError(place);
  return absl::AbortedError(
      absl::StrCat(place,
                   ": the backend was poisoned by an aborted all-reduce; the state is that of the "
                   "last finished step, call SetWorld() to go on"));
}

absl::StatusOr<std::vector<ReducedRecord>> CudaBackend::Collect(bool all, absl::Duration timeout) {
  RM_RETURN_IF_ERROR(UseDevice());
  const int allowed = all ? 0 : kMaxInFlight - 1;
  const absl::Time deadline = absl::Now() + timeout;
  while (true) {
    // Asked before looking: what is finished by then is handed over, poison or not.
    const uint32_t poisoned = poison();
    RM_RETURN_IF_ERROR(TakeFinished());
    // A caller who wants all must not wait for a record that will never come.
    const bool is_final = finished_.empty() || (all && poisoned == kPoisonedByRange);
    if (poisoned != 0 && is_final) return Poisoned(poisoned);
    if (poisoned != 0 || ring_->outstanding() <= allowed) return std::exchange(finished_, {});
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(absl::StrFormat(
          "rank %d of %d: %d steps are not finished after %s: a rank is gone, or the GPU hangs",
          rank_, world_size_, ring_->outstanding(), absl::FormatDuration(timeout)));
    }
    std::this_thread::yield();
  }
}

absl::StatusOr<std::vector<uint8_t>> CudaBackend::Predict(Split which, PositionRange slice) {
  RM_RETURN_IF_ERROR(CheckSlice("prediction", slice, split(which).num_samples));
  RM_RETURN_IF_ERROR(UseDevice());
  std::vector<uint8_t> classes(slice.count);
  for (uint32_t done = 0; done < slice.count; done += network_->max_rows()) {
    const PositionRange chunk = Chunk(slice, done);
    RM_RETURN_IF_ERROR(Forward(split(which), std::nullopt, chunk));
    RM_RETURN_IF_ERROR(Copy(network_->predictions(), chunk.count, classes.data() + done));
  }
  return classes;
}

absl::Status CudaBackend::ReadBuffer(DeviceSpan span, void* host) {
  RM_RETURN_IF_ERROR(UseDevice());
  return Copy(static_cast<const char*>(span.data), span.bytes(), static_cast<char*>(host));
}

absl::Status CudaBackend::WriteBuffer(const void* host, DeviceSpan span) {
  RM_RETURN_IF_ERROR(UseDevice());
  return Copy(static_cast<const char*>(host), span.bytes(), static_cast<char*>(span.data));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateTunedCudaBackend(const BackendOptions& options,
                                                                const Dataset& dataset,
                                                                const CudaTuning& tuning) {
  RM_RETURN_IF_ERROR(CheckBackendOptions(options, dataset));
  auto backend = std::make_unique<CudaBackend>(options, tuning);
  RM_RETURN_IF_ERROR(backend->Initialize(dataset));
  return backend;
}

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const BackendOptions& options,
                                                           const Dataset& dataset) {
  return CreateTunedCudaBackend(options, dataset, CudaTuning());
}

}  // namespace ringmaster
