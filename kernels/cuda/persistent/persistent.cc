#include "kernels/cuda/persistent/persistent.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/persistent/layout.h"

namespace ringmaster {
namespace {

using persistent::DeviceRecord;
using persistent::KernelReport;

absl::Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message =
      absl::StrCat("persistent kernel: ", what, ": ", cudaGetErrorString(error), " (",
                   cudaGetErrorName(error), ")");
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(message)
                                            : absl::InternalError(message);
}

#define RM_CUDA(call)                                                                 \
  do {                                                                                \
    if (absl::Status status = CudaStatus((call), #call); !status.ok()) return status; \
  } while (false)

struct FreeDevice {
  void operator()(void* pointer) const { cudaFree(pointer); }
};
struct FreeHost {
  void operator()(void* pointer) const { cudaFreeHost(pointer); }
};
struct DestroyStream {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
template <typename T>
using DeviceArray = std::unique_ptr<T[], FreeDevice>;
template <typename T>
using MappedValue = std::unique_ptr<T, FreeHost>;
using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, DestroyStream>;

template <typename T>
absl::Status Allocate(size_t count, DeviceArray<T>* array) {
  void* pointer = nullptr;
  RM_CUDA(cudaMalloc(&pointer, std::max<size_t>(count, 1) * sizeof(T)));
  array->reset(static_cast<T*>(pointer));
  return absl::OkStatus();
}

template <typename T>
absl::Status Upload(const std::vector<T>& from, DeviceArray<T>* to) {
  if (absl::Status status = Allocate(from.size(), to); !status.ok()) return status;
  RM_CUDA(cudaMemcpy(to->get(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  return absl::OkStatus();
}

template <typename T>
absl::Status AllocateMapped(MappedValue<T>* value) {
  void* pointer = nullptr;
  RM_CUDA(cudaHostAlloc(&pointer, sizeof(T), cudaHostAllocMapped));
  value->reset(new (pointer) T{});
  return absl::OkStatus();
}

StepRecord ToStepRecord(const DeviceRecord& from) {
  StepRecord record;
  record.loss_sum_quanta = from.loss_sum_quanta;
  record.correct = from.correct;
  record.samples = from.samples;
  record.digest = from.digest;
  record.non_finite = static_cast<uint32_t>(from.non_finite);
  return record;
}

// One launch in flight.
struct Launch {
  DeviceArray<DeviceRecord> records;
  DeviceArray<KernelReport> report;
  uint32_t steps = 0;     // 0: an evaluation
  uint32_t capacity = 0;  // of `records`
};

std::string WhyShapeUnsupported(const PersistentOptions& options) {
  const std::vector<int>& layers = options.model.layers;
  if (layers.size() != 3 || (layers[1] != 128 && layers[1] != 64)) {
    return "it needs one hidden layer of 128 or 64 units";
  }
  if (layers[2] > persistent::kMaxClasses) {
    return absl::StrCat("it takes at most ", persistent::kMaxClasses, " classes, not ", layers[2]);
  }
  if (options.plan.global_batch > persistent::kMaxBatch) {
    return absl::StrCat("it takes a batch of at most ", persistent::kMaxBatch, ", not ",
                        options.plan.global_batch);
  }
  if (options.world_size != 1) {
    return absl::StrCat("it works alone, not with a world size of ", options.world_size);
  }
  return "";
}

persistent::Variant VariantOf(const PersistentOptions& options) {
  persistent::Variant variant = options.variant;
  variant.blocks = options.model.layers[1] / persistent::kUnitsPerBlock;
  variant.profile = options.profile;
  return variant;
}

std::string WhyDeviceUnsupported(const PersistentOptions& options) {
  int major = 0;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, options.device);
      error != cudaSuccess) {
    return absl::StrCat("device ", options.device, " does not answer: ", cudaGetErrorString(error));
  }
  if (major != 9) {
    return absl::StrCat("it is built for compute capability 9.0 (H100, H200), not ", major, ".x");
  }
  const persistent::Variant variant = VariantOf(options);
  cudaError_t error = cudaSetDevice(options.device);
  int clusters = 0;
  if (error == cudaSuccess) error = persistent::MaxActiveClusters(variant, &clusters);
  if (error != cudaSuccess) {
    cudaGetLastError();  // not sticky: leave none behind
    return absl::StrCat("a cluster of ", variant.blocks,
                        " blocks cannot be launched: ", cudaGetErrorString(error));
  }
  if (clusters == 0) {
    return absl::StrCat("no cluster of ", variant.blocks, " blocks fits on the device");
  }
  return "";
}

class CudaPersistentTrainer : public PersistentTrainer {
 public:
  explicit CudaPersistentTrainer(const PersistentOptions& options)
      : options_(options), variant_(VariantOf(options)) {}
  ~CudaPersistentTrainer() override {
    RequestStop();
    if (stream_ != nullptr) cudaStreamSynchronize(stream_.get());
  }

  absl::Status Initialize(const Dataset& dataset);
  absl::Status SetState(const TrainState& state) override;
  absl::StatusOr<TrainState> GetState() override;
  absl::Status EnqueueSteps(uint32_t epoch, uint32_t first_step, uint32_t count) override;
  absl::Status EnqueueEvaluation() override;
  absl::StatusOr<PersistentResults> Collect() override;
  void RequestStop() noexcept override {
    if (stop_ != nullptr) std::atomic_ref<uint32_t>(*stop_).store(1, std::memory_order_relaxed);
  }
  uint32_t Progress() const noexcept override {
    return std::atomic_ref<uint32_t>(*progress_).load(std::memory_order_relaxed);
  }
  absl::StatusOr<std::vector<int64_t>> Profile() override;
  void* stream() override { return stream_.get(); }
  int live_pixels() const override { return live_pixels_; }

 private:
  int inputs() const { return options_.model.layers[0]; }
  int hidden() const { return options_.model.layers[1]; }
  int classes() const { return options_.model.layers[2]; }
  size_t num_parameters() const {
    return size_t(inputs() + 1) * hidden() + size_t(hidden() + 1) * classes();
  }
  absl::Status PackTraining(const DatasetSplit& train);
  absl::StatusOr<std::vector<int>> FindLivePixels(const uint8_t* images, uint32_t count);
  absl::StatusOr<Launch*> NewLaunch(uint32_t steps);
  absl::Status Synchronize();
  absl::Status CollectLaunch(const Launch& launch, PersistentResults* results);

  const PersistentOptions options_;
  const persistent::Variant variant_;
  Stream stream_;
  DeviceArray<uint8_t> packed_images_;
  DeviceArray<uint8_t> train_labels_;
  DeviceArray<uint8_t> test_images_;
  DeviceArray<uint8_t> test_labels_;
  uint32_t test_samples_ = 0;
  DeviceArray<int> weight_rows_;
  std::vector<bool> live_row_;  // [inputs]
  int live_pixels_ = 0;
  DeviceArray<float> parameters_;
  DeviceArray<float> first_moment_;
  DeviceArray<float> second_moment_;
  DeviceArray<long long> profile_;
  MappedValue<uint32_t> stop_;
  MappedValue<uint32_t> progress_;
  std::vector<Launch> launches_;
  std::vector<Launch> spare_;
  uint64_t step_ = 0;            // updates applied, as far as collected
  uint64_t enqueued_steps_ = 0;  // the same once everything enqueued is done
};

absl::Status CudaPersistentTrainer::Initialize(const Dataset& dataset) {
  if (dataset.pixels() != inputs() || dataset.num_classes > classes() ||
      dataset.train.num_samples != options_.plan.num_samples || options_.plan.global_batch == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the data set (", dataset.train.num_samples, " images of ", dataset.pixels(), " pixels, ",
        dataset.num_classes, " classes) does not fit the model (", inputs(), " inputs, ", classes(),
        " classes) or the plan (", options_.plan.num_samples, " samples)"));
  }
  RM_CUDA(cudaSetDevice(options_.device));
  cudaStream_t stream = nullptr;
  RM_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  stream_.reset(stream);
  test_samples_ = dataset.test.num_samples;
  absl::Status status = PackTraining(dataset.train);
  if (status.ok()) status = Upload(dataset.train.labels, &train_labels_);
  if (status.ok()) status = Upload(dataset.test.images, &test_images_);
  if (status.ok()) status = Upload(dataset.test.labels, &test_labels_);
  if (status.ok()) status = Allocate(num_parameters(), &parameters_);
  if (status.ok()) status = Allocate(num_parameters(), &first_moment_);
  if (status.ok()) status = Allocate(num_parameters(), &second_moment_);
  if (status.ok()) status = Allocate(persistent::kStageCount, &profile_);
  if (status.ok()) status = AllocateMapped(&stop_);
  if (status.ok()) status = AllocateMapped(&progress_);
  return status;
}

absl::StatusOr<std::vector<int>> CudaPersistentTrainer::FindLivePixels(const uint8_t* images,
                                                                       uint32_t count) {
  DeviceArray<uint32_t> flags;
  if (absl::Status status = Upload(std::vector<uint32_t>(inputs(), 0), &flags); !status.ok()) {
    return status;
  }
  RM_CUDA(persistent::MarkLivePixels(images, count, inputs(), flags.get(), stream_.get()));
  std::vector<uint32_t> host(inputs());
  RM_CUDA(cudaMemcpyAsync(host.data(), flags.get(), host.size() * sizeof(uint32_t),
                          cudaMemcpyDeviceToHost, stream_.get()));
  RM_CUDA(cudaStreamSynchronize(stream_.get()));
  std::vector<int> live;
  for (int i = 0; i < inputs(); ++i) {
    if (host[i] != 0) live.push_back(i);
  }
  return live;
}

absl::Status CudaPersistentTrainer::PackTraining(const DatasetSplit& train) {
  DeviceArray<uint8_t> images;
  if (absl::Status status = Upload(train.images, &images); !status.ok()) return status;
  absl::StatusOr<std::vector<int>> live = FindLivePixels(images.get(), train.num_samples);
  if (!live.ok()) return live.status();
  live_pixels_ = static_cast<int>(live->size());
  if (live_pixels_ > persistent::kMaxLivePixels) {
    return absl::FailedPreconditionError(
        absl::StrCat("persistent kernel: ", live_pixels_,
                     " pixels are not zero in every training image; it takes at most ",
                     persistent::kMaxLivePixels));
  }
  live_row_.assign(inputs(), false);
  for (const int pixel : *live) live_row_[pixel] = true;
  std::vector<int> rows = *live;
  rows.push_back(inputs());  // always 255: the bias
  rows.resize(persistent::kRowBytes, -1);
  if (absl::Status status = Upload(rows, &weight_rows_); !status.ok()) return status;
  if (absl::Status status =
          Allocate(size_t{train.num_samples} * persistent::kRowBytes, &packed_images_);
      !status.ok()) {
    return status;
  }
  RM_CUDA(persistent::PackImages(images.get(), train.num_samples, inputs(), weight_rows_.get(),
                                 packed_images_.get(), stream_.get()));
  RM_CUDA(cudaStreamSynchronize(stream_.get()));
  return absl::OkStatus();
}

absl::Status CudaPersistentTrainer::SetState(const TrainState& state) {
  for (const std::vector<float>* part :
       {&state.parameters, &state.first_moment, &state.second_moment}) {
    if (part->size() != num_parameters()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a state of ", part->size(), " parameters was given to a model of ", num_parameters()));
    }
  }
  for (int row = 0; row < inputs(); ++row) {
    for (int unit = 0; unit < hidden() && !live_row_[row]; ++unit) {
      const size_t i = size_t(row) * hidden() + unit;
      if (state.first_moment[i] != 0 || state.second_moment[i] != 0) {
        return absl::FailedPreconditionError(
            absl::StrCat("persistent kernel: pixel ", row,
                         " is zero in every training image, yet its weights have moments"));
      }
    }
  }
  if (absl::Status status = Synchronize(); !status.ok()) return status;
  const size_t bytes = num_parameters() * sizeof(float);
  RM_CUDA(cudaMemcpy(parameters_.get(), state.parameters.data(), bytes, cudaMemcpyHostToDevice));
  RM_CUDA(
      cudaMemcpy(first_moment_.get(), state.first_moment.data(), bytes, cudaMemcpyHostToDevice));
  RM_CUDA(
      cudaMemcpy(second_moment_.get(), state.second_moment.data(), bytes, cudaMemcpyHostToDevice));
  launches_.clear();
  step_ = enqueued_steps_ = state.step;
  return absl::OkStatus();
}

absl::StatusOr<TrainState> CudaPersistentTrainer::GetState() {
  if (absl::Status status = Synchronize(); !status.ok()) return status;
  TrainState state;
  const size_t bytes = num_parameters() * sizeof(float);
  for (const auto& [to, from] : {std::pair{&state.parameters, parameters_.get()},
                                 std::pair{&state.first_moment, first_moment_.get()},
                                 std::pair{&state.second_moment, second_moment_.get()}}) {
    to->resize(num_parameters());
    RM_CUDA(cudaMemcpy(to->data(), from, bytes, cudaMemcpyDeviceToHost));
  }
  state.step = step_;
  for (const Launch& launch : launches_) {
    KernelReport report{};
    if (launch.steps == 0) continue;
    RM_CUDA(cudaMemcpy(&report, launch.report.get(), sizeof(report), cudaMemcpyDeviceToHost));
    state.step += report.steps_done;
  }
  return state;
}

absl::Status CudaPersistentTrainer::Synchronize() {
  return CudaStatus(cudaStreamSynchronize(stream_.get()), "waiting for the device");
}

absl::StatusOr<Launch*> CudaPersistentTrainer::NewLaunch(uint32_t steps) {
  const uint32_t records = std::max<uint32_t>(steps, 1);
  Launch launch;
  if (!spare_.empty() && spare_.back().capacity >= records) {
    launch = std::move(spare_.back());
    spare_.pop_back();
  } else {  // allocating may wait for the device: launches are used again
    launch.capacity = std::max(records, options_.plan.steps_per_epoch());
    absl::Status status = Allocate(launch.capacity, &launch.records);
    if (status.ok()) status = Allocate(1, &launch.report);
    if (!status.ok()) return status;
  }
  launch.steps = steps;
  RM_CUDA(cudaMemsetAsync(launch.records.get(), 0, records * sizeof(DeviceRecord), stream_.get()));
  RM_CUDA(cudaMemsetAsync(launch.report.get(), 0, sizeof(KernelReport), stream_.get()));
  launches_.push_back(std::move(launch));
  return &launches_.back();
}

absl::Status CudaPersistentTrainer::EnqueueSteps(uint32_t epoch, uint32_t first_step,
                                                 uint32_t count) {
  const uint32_t available = options_.plan.steps_per_epoch();
  if (first_step > available || count > available - first_step) {
    return absl::OutOfRangeError(absl::StrCat("steps ", first_step, " to ", first_step + count,
                                              " of an epoch of ", available, " were asked for"));
  }
  if (count == 0) return absl::OkStatus();
  absl::StatusOr<Launch*> launch = NewLaunch(count);
  if (!launch.ok()) return launch.status();
  const OptimizerSpec& optimizer = options_.optimizer;
  const double updates = static_cast<double>(enqueued_steps_);
  persistent::KernelArguments arguments{};
  arguments.images = packed_images_.get();
  arguments.labels = train_labels_.get();
  arguments.weight_rows = weight_rows_.get();
  arguments.parameters = parameters_.get();
  arguments.first_moment = first_moment_.get();
  arguments.second_moment = second_moment_.get();
  arguments.records = (*launch)->records.get();
  arguments.report = (*launch)->report.get();
  arguments.stop = stop_.get();
  arguments.progress = progress_.get();
  arguments.profile = profile_.get();
  arguments.timeout_cycles = 1'000'000'000;  // over half a second
  arguments.plan = options_.plan;
  arguments.epoch = epoch;
  arguments.first_step = first_step;
  arguments.num_steps = count;
  arguments.inputs = inputs();
  arguments.classes = classes();
  arguments.adam = optimizer.kind == OptimizerSpec::Kind::kAdam;
  arguments.learning_rate = optimizer.learning_rate;
  arguments.beta1 = optimizer.beta1;
  arguments.beta2 = optimizer.beta2;
  arguments.epsilon = optimizer.epsilon;
  arguments.one_minus_beta1 = 1 - optimizer.beta1;
  arguments.one_minus_beta2 = 1 - optimizer.beta2;
  arguments.beta1_power = std::pow(static_cast<double>(optimizer.beta1), updates);
  arguments.beta2_power = std::pow(static_cast<double>(optimizer.beta2), updates);
  RM_CUDA(persistent::LaunchTraining(arguments, variant_, stream_.get()));
  enqueued_steps_ += count;
  return absl::OkStatus();
}

absl::Status CudaPersistentTrainer::EnqueueEvaluation() {
  absl::StatusOr<Launch*> launch = NewLaunch(0);
  if (!launch.ok()) return launch.status();
  RM_CUDA(persistent::LaunchEvaluation(test_images_.get(), test_labels_.get(), test_samples_,
                                       inputs(), hidden(), classes(), parameters_.get(),
                                       (*launch)->records.get(), stream_.get()));
  return absl::OkStatus();
}

absl::Status CudaPersistentTrainer::CollectLaunch(const Launch& launch,
                                                  PersistentResults* results) {
  KernelReport report{};
  if (launch.steps != 0) {
    RM_CUDA(cudaMemcpy(&report, launch.report.get(), sizeof(report), cudaMemcpyDeviceToHost));
    if (report.steps_done < launch.steps) results->stopped = true;
  }
  std::vector<DeviceRecord> records(launch.steps == 0 ? 1 : report.steps_done);
  RM_CUDA(cudaMemcpy(records.data(), launch.records.get(), records.size() * sizeof(DeviceRecord),
                     cudaMemcpyDeviceToHost));
  std::vector<StepRecord>& to = launch.steps == 0 ? results->evaluations : results->steps;
  for (const DeviceRecord& record : records) to.push_back(ToStepRecord(record));
  step_ += report.steps_done;
  return absl::OkStatus();
}

absl::StatusOr<PersistentResults> CudaPersistentTrainer::Collect() {
  if (absl::Status status = Synchronize(); !status.ok()) return status;
  PersistentResults results;
  for (const Launch& launch : launches_) {
    if (absl::Status status = CollectLaunch(launch, &results); !status.ok()) return status;
  }
  std::move(launches_.begin(), launches_.end(), std::back_inserter(spare_));
  launches_.clear();
  enqueued_steps_ = step_;
  std::atomic_ref<uint32_t>(*stop_).store(0, std::memory_order_relaxed);
  return results;
}

absl::StatusOr<std::vector<int64_t>> CudaPersistentTrainer::Profile() {
  if (!options_.profile) {
    return absl::FailedPreconditionError("the trainer was created without options.profile");
  }
  if (absl::Status status = Synchronize(); !status.ok()) return status;
  std::vector<int64_t> cycles(persistent::kStageCount);
  static_assert(sizeof(int64_t) == sizeof(long long));
  RM_CUDA(cudaMemcpy(cycles.data(), profile_.get(), cycles.size() * sizeof(int64_t),
                     cudaMemcpyDeviceToHost));
  return cycles;
}

}  // namespace

std::string PersistentTrainer::WhyUnsupported(const PersistentOptions& options) {
  const std::string shape = WhyShapeUnsupported(options);
  return shape.empty() ? WhyDeviceUnsupported(options) : shape;
}

absl::StatusOr<std::unique_ptr<PersistentTrainer>> PersistentTrainer::Create(
    const PersistentOptions& options, const Dataset& dataset) {
  if (const std::string reason = WhyUnsupported(options); !reason.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("persistent kernel: ", reason));
  }
  auto trainer = std::make_unique<CudaPersistentTrainer>(options);
  if (absl::Status status = trainer->Initialize(dataset); !status.ok()) return status;
  return trainer;
}

}  // namespace ringmaster
