// The tail, what is published of a step, and the optimizers.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace ringmaster::cuda {
namespace {

// One block.
__global__ void WriteTailKernel(TailArguments a) {
  const int own = tail::kRankTimes + 2 * a.rank;
  const int size = static_cast<int>(tail::Size(a.world_size));
  for (int i = tail::kRankTimes + threadIdx.x; i < size; i += blockDim.x) {
    a.tail[i] = i == own ? a.compute_us : i == own + 1 ? a.all_reduce_us : 0.0f;
  }
  if (threadIdx.x != 0) return;
  StepRecord record;
  record.loss_sum_quanta = a.record->loss_sum_quanta;
  record.correct = a.record->correct;
  record.samples = a.record->samples;
  record.digest = a.record->digest;
  record.non_finite = a.record->non_finite;
  for (int i = 0; i < tail::kFlagCount; ++i) record.flags[i] = a.flags[i];
  WriteRecord(record, a.tail);
}

__device__ UpdateControl BeginUpdate(const PublishArguments& a, bool intact) {
  const uint64_t samples = ReadRecord(a.tail).samples;
  const uint64_t step = *a.step + 1;
  const double t = static_cast<double>(step);
  UpdateControl control;
  control.apply = intact ? 1 : 0;
  control.scale = samples == 0 ? 0.0f : static_cast<float>(1.0 / static_cast<double>(samples));
  control.alpha = static_cast<float>(a.learning_rate * sqrt(1.0 - pow(double{a.beta2}, t)) /
                                     (1.0 - pow(double{a.beta1}, t)));
  if (intact) *a.step = step;
  return control;
}

// One block.
__global__ void PublishKernel(PublishArguments a) {
  const int size = static_cast<int>(tail::Size(a.world_size));
  for (int i = threadIdx.x; i < size; i += blockDim.x) a.published_tail[i] = a.tail[i];
  if (threadIdx.x != 0) return;
  const bool intact = *static_cast<const volatile uint32_t*>(a.poisoned) == 0;
  *a.published_intact = intact ? 1 : 0;
  if (a.control != nullptr) *a.control = BeginUpdate(a, intact);
}

__global__ void AdamKernel(AdamArguments a) {
  const size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= a.count || a.control->apply == 0) return;
  const float g = a.gradient[i] * a.control->scale;
  const float m = a.first_moment[i] + (g - a.first_moment[i]) * a.one_minus_beta1;
  const float v = a.second_moment[i] + (g * g - a.second_moment[i]) * a.one_minus_beta2;
  a.first_moment[i] = m;
  a.second_moment[i] = v;
  a.parameters[i] -= m / (sqrtf(v) + a.epsilon) * a.control->alpha;
}

__global__ void SgdKernel(const UpdateControl* control, size_t count, const float* gradient,
                          float learning_rate, float* parameters) {
  const size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count || control->apply == 0) return;
  parameters[i] -= learning_rate * control->scale * gradient[i];
}

}  // namespace

cudaError_t WriteTail(const TailArguments& arguments, cudaStream_t stream) {
  return Launch(WriteTailKernel, 1, kBlockThreads, stream, arguments);
}

cudaError_t Publish(const PublishArguments& arguments, cudaStream_t stream) {
  return Launch(PublishKernel, 1, kBlockThreads, stream, arguments);
}

cudaError_t Adam(const AdamArguments& arguments, cudaStream_t stream) {
  return Launch(AdamKernel, BlocksFor(arguments.count, kBlockThreads), kBlockThreads, stream,
                arguments);
}

cudaError_t Sgd(const UpdateControl* control, size_t count, const float* gradient,
                float learning_rate, float* parameters, cudaStream_t stream) {
  return Launch(SgdKernel, BlocksFor(count, kBlockThreads), kBlockThreads, stream, control, count,
                gradient, learning_rate, parameters);
}

}  // namespace ringmaster::cuda
