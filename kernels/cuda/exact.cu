// Reproducible runs on the device. Correct first: no shared memory, and nothing for a thread to
// wait for. Neighbouring threads do neighbouring outputs, so that memory is read in whole lines.
#include "kernels/cuda/exact_kernels.h"
#include "kernels/cuda/launch.cuh"

namespace ringmaster::cuda {
namespace {

using exact::One;

constexpr int kShardRows = static_cast<int>(kMicroShard);

__device__ size_t ThreadIndex() { return size_t{blockIdx.x} * blockDim.x + threadIdx.x; }

__global__ void ForwardKernel(ExactForwardArguments a) {
  const size_t i = ThreadIndex();
  if (i >= size_t{1} * a.rows * a.outputs) return;
  const size_t row = i / a.outputs;
  const size_t unit = i % a.outputs;
  const float* const x = a.x + row * a.inputs;
  float sum = 0;
  for (int k = 0; k < a.inputs; ++k) {
    if (a.skip_zeros && x[k] == 0) continue;
    sum = One::MulAdd(x[k], a.weights[size_t{1} * k * a.outputs + unit], sum);
  }
  const float z = sum + a.bias[unit];
  a.out[i] = a.relu ? exact::Relu<One>(z) : z;
}

__global__ void SoftmaxKernel(SoftmaxArguments a) {
  const size_t row = ThreadIndex();
  if (row >= static_cast<size_t>(a.rows)) return;
  const uint32_t target = a.targets[row];
  const exact::Softmax<One> result =
      exact::SoftmaxCrossEntropy<One>(a.logits + row * a.classes, 1, a.classes, target);
  a.predictions[row] = static_cast<uint8_t>(result.prediction);
  if (isfinite(result.loss)) {
    atomicAdd(&a.record->loss_sum_quanta,
              static_cast<unsigned long long>(tail::QuantizeLoss(result.loss)));
  } else {
    atomicAdd(&a.record->non_finite, 1u);
  }
  if (result.prediction == target) atomicAdd(&a.record->correct, 1ull);
}

__global__ void DeltaKernel(ExactDeltaArguments a) {
  const size_t i = ThreadIndex();
  if (i >= size_t{1} * a.rows * a.inputs) return;
  const float* const delta = a.delta + i / a.inputs * a.outputs;
  const float* const weights = a.weights + i % a.inputs * a.outputs;
  float sum = 0;
  for (int j = 0; j < a.outputs; ++j) sum = One::MulAdd(weights[j], delta[j], sum);
  a.delta_in[i] = exact::ReluGradient<One>(a.activation[i], sum);
}

// The chain of one micro-shard, from its first row to before `end`. Of a bias (`x` is null) each
// factor is 1.
__device__ float GradientChain(const ExactGradientArguments& a, const float* x, size_t unit,
                               int first, int end) {
  float sum = 0;
  for (int row = first; row < end; ++row) {
    const float factor = x == nullptr ? 1.0f : x[size_t{1} * row * a.inputs];
    if (factor == 0) continue;
    sum = One::MulAdd(factor, a.delta[size_t{1} * row * a.outputs + unit], sum);
  }
  return sum;
}

// The last `outputs` threads do the biases.
__global__ void GradientKernel(ExactGradientArguments a) {
  const size_t i = ThreadIndex();
  const size_t weights = size_t{1} * a.inputs * a.outputs;
  if (i >= weights + a.outputs) return;
  const float* const x = i < weights ? a.x + i / a.outputs : nullptr;
  int64_t* const out = i < weights ? a.gradient + i : a.bias_gradient + (i - weights);
  int64_t quanta = a.accumulate ? *out : 0;
  bool fits = true;
  for (int first = 0; first < a.rows; first += kShardRows) {
    const int end = first + kShardRows < a.rows ? first + kShardRows : a.rows;
    const float gradient = GradientChain(a, x, i % a.outputs, first, end);
    fits = fits && exact::IsRepresentable(gradient);
    if (fits) quanta += exact::Quantize(gradient);
  }
  *out = quanta;
  if (!fits) atomicAdd(&a.record->out_of_range, 1u);
}

// One block.
__global__ void WriteTailKernel(ExactTailArguments a) {
  const int own = tail::kWholeRankTimes + 2 * a.rank;
  const int size = static_cast<int>(tail::WholeSize(a.world_size));
  for (int i = tail::kWholeRankTimes + threadIdx.x; i < size; i += blockDim.x) {
    a.tail[i] = i == own ? a.compute_ns : i == own + 1 ? a.all_reduce_ns : 0;
  }
  if (threadIdx.x != 0) return;
  StepRecord record;
  record.loss_sum_quanta = a.record->loss_sum_quanta;
  record.correct = a.record->correct;
  record.samples = a.record->samples;
  record.digest = a.record->digest;
  record.non_finite = a.record->non_finite;
  record.out_of_range = a.record->out_of_range > 0 ? 1 : 0;
  for (int i = 0; i < tail::kFlagCount; ++i) record.flags[i] = a.flags[i];
  WriteRecord(record, a.tail);
}

__device__ ExactControl BeginUpdate(const ExactPublishArguments& a, uint64_t samples, bool apply) {
  ExactControl control;
  control.apply = apply ? 1 : 0;
  control.mean_scale = exact::MeanScale(samples);
  control.factors =
      exact::MakeAdamFactors(a.learning_rate, a.beta1, a.beta2, a.epsilon, *a.step + 1);
  if (apply) *a.step += 1;
  return control;
}

// One block.
__global__ void PublishKernel(ExactPublishArguments a) {
  const int size = static_cast<int>(tail::WholeSize(a.world_size));
  for (int i = threadIdx.x; i < size; i += blockDim.x) a.published_tail[i] = a.tail[i];
  if (threadIdx.x != 0) return;
  const StepRecord record = ReadRecord(a.tail);
  volatile uint32_t* const poisoned = a.poisoned;
  if (a.control != nullptr && record.out_of_range > 0 && *poisoned == 0) {
    *poisoned = a.poison;
  }
  const bool intact = *poisoned == 0;
  *a.published_intact = intact ? 1 : 0;
  if (a.control != nullptr) *a.control = BeginUpdate(a, record.samples, intact);
}

__global__ void AdamKernel(ExactUpdateArguments a) {
  const size_t i = ThreadIndex();
  if (i >= a.count || a.control->apply == 0) return;
  exact::Adam<One>(exact::MeanGradient(a.gradient[i], a.control->mean_scale), a.control->factors,
                   a.parameters + i, a.first_moment + i, a.second_moment + i);
}

__global__ void SgdKernel(ExactUpdateArguments a) {
  const size_t i = ThreadIndex();
  if (i >= a.count || a.control->apply == 0) return;
  exact::Sgd<One>(exact::MeanGradient(a.gradient[i], a.control->mean_scale), a.learning_rate,
                  a.parameters + i);
}

template <typename Arguments>
cudaError_t LaunchFor(void (*kernel)(Arguments), size_t threads, const Arguments& arguments,
                      cudaStream_t stream) {
  return Launch(kernel, BlocksFor(threads, kBlockThreads), kBlockThreads, stream, arguments);
}

}  // namespace

cudaError_t ExactForward(const ExactForwardArguments& arguments, cudaStream_t stream) {
  return LaunchFor(ForwardKernel, size_t{1} * arguments.rows * arguments.outputs, arguments,
                   stream);
}

cudaError_t ExactSoftmax(const SoftmaxArguments& arguments, cudaStream_t stream) {
  return LaunchFor(SoftmaxKernel, arguments.rows, arguments, stream);
}

cudaError_t ExactDelta(const ExactDeltaArguments& arguments, cudaStream_t stream) {
  return LaunchFor(DeltaKernel, size_t{1} * arguments.rows * arguments.inputs, arguments, stream);
}

cudaError_t ExactGradient(const ExactGradientArguments& arguments, cudaStream_t stream) {
  return LaunchFor(GradientKernel, (size_t{1} + arguments.inputs) * arguments.outputs, arguments,
                   stream);
}

cudaError_t ExactWriteTail(const ExactTailArguments& arguments, cudaStream_t stream) {
  return LaunchFor(WriteTailKernel, 1, arguments, stream);
}

cudaError_t ExactPublish(const ExactPublishArguments& arguments, cudaStream_t stream) {
  return LaunchFor(PublishKernel, 1, arguments, stream);
}

cudaError_t ExactAdam(const ExactUpdateArguments& arguments, cudaStream_t stream) {
  return LaunchFor(AdamKernel, arguments.count, arguments, stream);
}

cudaError_t ExactSgd(const ExactUpdateArguments& arguments, cudaStream_t stream) {
  return LaunchFor(SgdKernel, arguments.count, arguments, stream);
}

}  // namespace ringmaster::cuda
