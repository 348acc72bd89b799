// The updater of reproducible runs. See updater.h.

#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/exact_kernels.h"
#include "kernels/cuda/updater.h"

namespace ringmaster {
namespace {

class ExactUpdater final : public CudaUpdater {
 public:
  ExactUpdater(const OptimizerSpec& optimizer, cudaStream_t stream,
               DeviceArray<cuda::ExactControl> control)
      : optimizer_(optimizer), stream_(stream), control_(std::move(control)) {}

  absl::Status WriteTail(const cuda::DeviceRecord* record, const StepWork& work,
                         const RankTimes& times, int rank, int world_size,
                         DeviceSpan tail) override {
    cuda::ExactTailArguments arguments;
    arguments.record = record;
    std::copy(std::begin(work.flags), std::end(work.flags), arguments.flags);
    arguments.compute_ns = tail::ToNanoseconds(times.compute_us);
    arguments.all_reduce_ns = tail::ToNanoseconds(times.all_reduce_us);
    arguments.rank = rank;
    arguments.world_size = world_size;
    arguments.tail = tail.integers();
    return CudaStatus(cuda::ExactWriteTail(arguments, stream_), "ExactWriteTail");
  }

  absl::Status Publish(const Publication& publication) override {
    const bool update = publication.state != nullptr;
    const cuda::ExactPublishArguments arguments = {
        .tail = publication.tail.integers(),
        .world_size = publication.world_size,
        .poisoned = publication.poisoned,
        .poison = kPoisonedByRange,
        .published_tail = publication.published.integers(),
        .published_intact = publication.intact,
        .control = update ? control_.data() : nullptr,
        .step = update ? publication.state->step.data() : nullptr,
        .learning_rate = optimizer_.learning_rate,
        .beta1 = optimizer_.beta1,
        .beta2 = optimizer_.beta2,
        .epsilon = optimizer_.epsilon,
    };
    return CudaStatus(cuda::ExactPublish(arguments, stream_), "ExactPublish");
  }

  absl::Status Update(DeviceSpan gradients, DeviceState* state) override {
    const cuda::ExactUpdateArguments arguments = {
        .control = control_.data(),
        .count = state->parameters.size(),
        .gradient = gradients.integers(),
        .parameters = state->parameters.data(),
        .first_moment = state->first_moment.data(),
        .second_moment = state->second_moment.data(),
        .learning_rate = optimizer_.learning_rate,
    };
    if (optimizer_.kind == OptimizerSpec::Kind::kSgd) {
      return CudaStatus(cuda::ExactSgd(arguments, stream_), "ExactSgd");
    }
    return CudaStatus(cuda::ExactAdam(arguments, stream_), "ExactAdam");
  }

 private:
  const OptimizerSpec optimizer_;
  const cudaStream_t stream_;
  const DeviceArray<cuda::ExactControl> control_;  // [1]
};

}  // namespace

absl::StatusOr<std::unique_ptr<CudaUpdater>> CreateCudaExactUpdater(const OptimizerSpec& optimizer,
                                                                    cudaStream_t stream) {
  RM_ASSIGN_OR_RETURN(auto control, DeviceArray<cuda::ExactControl>::Create(1));
  return std::make_unique<ExactUpdater>(optimizer, stream, std::move(control));
}

}  // namespace ringmaster
