#include "tests/worker/communicator_fixture.h"

#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/model.h"
#include "common/status_macros.h"
#include "common/step_tail.h"
#include "tests/worker/in_memory_store.h"
#include "worker/cuda_loader.h"
#include "worker/gloo_communicator.h"
#include "worker/solo_communicator.h"

namespace ringmaster {
namespace {

class HostRank : public TestRank {
 public:
  HostRank(std::unique_ptr<Communicator> communicator, size_t longest)
      : communicator_(std::move(communicator)), data_(longest * sizeof(int64_t)) {}

  Communicator& communicator() override { return *communicator_; }
  DeviceSpan data(size_t count, Element element) override { return {data_.data(), count, element}; }
  absl::Status Write(const void* host, DeviceSpan span) override {
    if (span.count > 0) std::memcpy(span.data, host, span.bytes());
    return absl::OkStatus();
  }
  absl::Status Read(DeviceSpan span, void* host) override {
    if (span.count > 0) std::memcpy(host, span.data, span.bytes());
    return absl::OkStatus();
  }

 private:
  std::unique_ptr<Communicator> communicator_;
  std::vector<std::byte> data_;
};

// Uses the buffer of a backend as device memory.
class CudaRank : public TestRank {
 public:
  static absl::StatusOr<std::unique_ptr<CudaRank>> Create(const CudaModule& module,
                                                          const Dataset& dataset,
                                                          NcclOptions options) {
    BackendOptions backend_options;
    // Whose buffer has room for either element.
    backend_options.reproducible = true;
    backend_options.plan = {1, dataset.train.num_samples, 1, SliceGranularity(true)};
    backend_options.device = options.device;
    RM_ASSIGN_OR_RETURN(auto backend, module.create_backend(backend_options, dataset));
    RM_RETURN_IF_ERROR(backend->SetWorld(options.rank, options.world_size));
    options.stream = backend->stream();
    RM_ASSIGN_OR_RETURN(auto communicator, module.create_nccl_communicator(options));
    return std::unique_ptr<CudaRank>(new CudaRank(std::move(backend), std::move(communicator)));
  }

  Communicator& communicator() override { return *communicator_; }
  DeviceSpan data(size_t count, Element element) override {
    return {static_cast<std::byte*>(backend_->reduce_buffer().data), count, element};
  }
  absl::Status Write(const void* host, DeviceSpan span) override {
    return backend_->WriteBuffer(host, span);
  }
  absl::Status Read(DeviceSpan span, void* host) override {
    RM_RETURN_IF_ERROR(backend_->ReadBuffer(span, host));
    return communicator_->Poll();
  }

 private:
  CudaRank(std::unique_ptr<Backend> backend, std::unique_ptr<Communicator> communicator)
      : backend_(std::move(backend)), communicator_(std::move(communicator)) {}

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Communicator> communicator_;
};

// One black image of each split, of the default model's size.
Dataset SmallestDataset() {
  Dataset dataset;
  dataset.rows = 28;
  dataset.columns = 28;
  dataset.num_classes = 10;
  for (DatasetSplit* split : {&dataset.train, &dataset.test}) {
    split->images.assign(dataset.pixels(), 0);
    split->labels = {9};
    split->num_samples = 1;
  }
  return dataset;
}

// Opened once: a module stays open, and a failure is the same the second time.
const absl::StatusOr<const CudaModule*>& Module() {
  static const auto* const module = new absl::StatusOr<const CudaModule*>(LoadCudaModule(""));
  return *module;
}

// Makes each rank in a thread of its own, as building a communicator waits for all of them.
absl::StatusOr<World> MakeWorld(
    int world_size, const std::function<absl::StatusOr<std::unique_ptr<TestRank>>(int)>& make) {
  std::vector<absl::StatusOr<std::unique_ptr<TestRank>>> made(world_size);
  ForEachRank(world_size, [&](int rank) { made[rank] = make(rank); });
  World world;
  for (auto& rank : made) {
    RM_RETURN_IF_ERROR(rank.status());
    world.push_back(*std::move(rank));
  }
  return world;
}

}  // namespace

size_t LongestCount(int world_size) {
  return ModelSpec{}.num_parameters() + tail::WholeSize(world_size);
}

void ForEachRank(int world_size, const std::function<void(int)>& rank) {
  std::vector<std::thread> threads;
  for (int r = 0; r < world_size; ++r) threads.emplace_back(rank, r);
  for (std::thread& thread : threads) thread.join();
}

absl::StatusOr<World> MakeSoloWorld() {
  World world;
  world.push_back(std::make_unique<HostRank>(std::make_unique<SoloCommunicator>(),
                                             LongestCount(/*world_size=*/1)));
  return world;
}

absl::StatusOr<World> MakeGlooWorld(int world_size, absl::Duration timeout) {
  InMemoryStore store;
  return MakeWorld(world_size, [&](int rank) -> absl::StatusOr<std::unique_ptr<TestRank>> {
    GlooCommunicator::Options options;
    options.rank = rank;
    options.world_size = world_size;
    options.store = &store;
    options.listen_address = "127.0.0.1";
    options.timeout = timeout;
    RM_ASSIGN_OR_RETURN(auto communicator, GlooCommunicator::Create(options));
    return std::make_unique<HostRank>(std::move(communicator), LongestCount(world_size));
  });
}

absl::StatusOr<World> MakeNcclWorld(int world_size) {
  if (absl::IsNotFound(Module().status())) {
    return absl::UnavailableError(Module().status().message());
  }
  RM_RETURN_IF_ERROR(Module().status());
  const CudaModule& module = **Module();
  RM_ASSIGN_OR_RETURN(const std::vector<CudaDevice> devices, module.devices());
  if (static_cast<int>(devices.size()) < world_size) {
    return absl::UnavailableError(
        absl::StrCat(devices.size(), " GPUs, the test wants ", world_size));
  }
  RM_ASSIGN_OR_RETURN(const std::string id, module.create_nccl_unique_id());
  static const Dataset dataset = SmallestDataset();
  return MakeWorld(world_size, [&](int rank) -> absl::StatusOr<std::unique_ptr<TestRank>> {
    NcclOptions options;
    options.unique_id = id;
    options.rank = rank;
    options.world_size = world_size;
    options.device = rank;
    return CudaRank::Create(module, dataset, options);
  });
}

}  // namespace ringmaster
