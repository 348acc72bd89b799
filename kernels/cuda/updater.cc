#include "kernels/cuda/updater.h"

#include <algorithm>

#include "kernels/cuda/check.h"

namespace ringmaster {
namespace {

class FloatUpdater final : public CudaUpdater {
 public:
  FloatUpdater(const OptimizerSpec& optimizer, cudaStream_t stream,
               DeviceArray<cuda::UpdateControl> control)
      : optimizer_(optimizer), stream_(stream), control_(std::move(control)) {}

  absl::Status WriteTail(const cuda::DeviceRecord* record, const StepWork& work,
                         const RankTimes& times, int rank, int world_size,
                         DeviceSpan tail) override {
    cuda::TailArguments arguments;
    arguments.record = record;
    std::copy(std::begin(work.flags), std::end(work.flags), arguments.flags);
    arguments.compute_us = times.compute_us;
    arguments.all_reduce_us = times.all_reduce_us;
    arguments.rank = rank;
    arguments.world_size = world_size;
    arguments.tail = tail.floats();
    return CudaStatus(cuda::WriteTail(arguments, stream_), "WriteTail");
  }

  absl::Status Publish(const Publication& publication) override {
    const bool update = publication.state != nullptr;
    const cuda::PublishArguments arguments = {
        .tail = publication.tail.floats(),
        .world_size = publication.world_size,
        .poisoned = publication.poisoned,
        .published_tail = publication.published.floats(),
        .published_intact = publication.intact,
        .control = update ? control_.data() : nullptr,
        .step = update ? publication.state->step.data() : nullptr,
        .learning_rate = optimizer_.learning_rate,
        .beta1 = optimizer_.beta1,
        .beta2 = optimizer_.beta2,
    };
    return CudaStatus(cuda::Publish(arguments, stream_), "Publish");
  }

  absl::Status Update(DeviceSpan gradients, DeviceState* state) override {
    const size_t count = state->parameters.size();
    if (optimizer_.kind == OptimizerSpec::Kind::kSgd) {
      return CudaStatus(cuda::Sgd(control_.data(), count, gradients.floats(),
                                  optimizer_.learning_rate, state->parameters.data(), stream_),
                        "Sgd");
    }
    const cuda::AdamArguments arguments = {
        .control = control_.data(),
        .count = count,
        .gradient = gradients.floats(),
        .parameters = state->parameters.data(),
        .first_moment = state->first_moment.data(),
        .second_moment = state->second_moment.data(),
        .one_minus_beta1 = static_cast<float>(1.0 - double{optimizer_.beta1}),
        .one_minus_beta2 = static_cast<float>(1.0 - double{optimizer_.beta2}),
        .epsilon = optimizer_.epsilon,
    };
    return CudaStatus(cuda::Adam(arguments, stream_), "Adam");
  }

 private:
  const OptimizerSpec optimizer_;
  const cudaStream_t stream_;
  const DeviceArray<cuda::UpdateControl> control_;  // [1]
};

}  // namespace

absl::StatusOr<std::unique_ptr<CudaUpdater>> CreateCudaUpdater(const OptimizerSpec& optimizer,
                                                               cudaStream_t stream) {
  RM_ASSIGN_OR_RETURN(auto control, DeviceArray<cuda::UpdateControl>::Create(1));
  return std::make_unique<FloatUpdater>(optimizer, stream, std::move(control));
}

}  // namespace ringmaster
