// Gather, bias + ReLU, and softmax with cross-entropy.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace ringmaster::cuda {
namespace {

constexpr float kPixelScale = 1.0f / 255.0f;
constexpr unsigned kWholeWarp = 0xFFFFFFFFu;
constexpr int kWarpThreads = 32;
constexpr int kSoftmaxWarps = 4;  // rows of a block

// One block a sample.
__global__ void GatherKernel(GatherArguments a) {
  const uint32_t row = blockIdx.x;
  const uint32_t position = a.chunk.first + row;
  // Every thread works the sample out for itself: cheaper than waiting for one of them.
  const uint32_t sample = a.in_order ? position : a.order(position);
  const uint8_t* const image = a.images + size_t{sample} * a.pixels;
  float* const x = a.x + size_t{row} * a.pixels;
  for (int p = threadIdx.x; p < a.pixels; p += blockDim.x) {
    x[p] = static_cast<float>(image[p]) * kPixelScale;
  }
  if (threadIdx.x == 0) {
    a.targets[row] = a.labels[sample];
    atomicAdd(&a.record->digest, static_cast<unsigned long long>(SampleFingerprint(sample)));
    atomicAdd(&a.record->samples, 1ull);
  }
}

__global__ void BiasReluKernel(const float* bias, int count, int columns, float* x) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float z = x[i] + bias[i % columns];
  x[i] = z < 0 ? 0 : z;  // not fmaxf, which would drop a NaN
}

// The largest logit and its class; the first one where several are equal.
struct Best {
  float logit;
  int index;
};

__device__ Best WarpBest(Best best) {
  for (int offset = kWarpThreads / 2; offset > 0; offset /= 2) {
    const float logit = __shfl_xor_sync(kWholeWarp, best.logit, offset);
    const int index = __shfl_xor_sync(kWholeWarp, best.index, offset);
    if (logit > best.logit || (logit == best.logit && index < best.index)) best = {logit, index};
  }
  return best;
}

// The same bits in every lane: floating-point addition commutes.
__device__ float WarpSum(float sum) {
  for (int offset = kWarpThreads / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(kWholeWarp, sum, offset);
  }
  return sum;
}

__device__ void CountSample(float loss, bool is_correct, DeviceRecord* record) {
  if (isfinite(loss)) {
    atomicAdd(&record->loss_sum_quanta, static_cast<unsigned long long>(tail::QuantizeLoss(loss)));
  } else {
    atomicAdd(&record->non_finite, 1u);
  }
  if (is_correct) atomicAdd(&record->correct, 1ull);
}

// One warp a sample; each lane reads and writes only its own classes: lane, lane + 32, ...
__global__ void SoftmaxKernel(SoftmaxArguments a) {
  const int lane = threadIdx.x;
  const int row = blockIdx.x * kSoftmaxWarps + threadIdx.y;
  if (row >= a.rows) return;  // the whole warp
  float* const z = a.logits + size_t{static_cast<unsigned>(row)} * a.classes;
  const int target = a.targets[row];

  Best best = {-INFINITY, a.classes};
  float own_target_logit = 0;
  for (int c = lane; c < a.classes; c += kWarpThreads) {
    const float logit = z[c] + a.bias[c];
    z[c] = logit;
    if (logit > best.logit) best = {logit, c};
    if (c == target) own_target_logit = logit;
  }
  best = WarpBest(best);
  if (best.index == a.classes) best.index = 0;  // only where no logit is a number
  const float target_logit = __shfl_sync(kWholeWarp, own_target_logit, target % kWarpThreads);

  // Without the largest term, which is exactly 1: then a small loss keeps its digits.
  float others = 0;
  for (int c = lane; c < a.classes; c += kWarpThreads) {
    if (c != best.index) others += expf(z[c] - best.logit);
  }
  others = WarpSum(others);

  const float inverse = 1.0f / (1.0f + others);
  for (int c = lane; c < a.classes; c += kWarpThreads) {
    const float probability = c == best.index ? inverse : expf(z[c] - best.logit) * inverse;
    if (c != target) {
      z[c] = probability;
    } else {
      z[c] = target == best.index ? -others * inverse : probability - 1.0f;
    }
  }
  if (lane == 0) {
    const float loss = log1pf(others) + (best.logit - target_logit);
    a.predictions[row] = static_cast<uint8_t>(best.index);
    CountSample(loss, best.index == target, a.record);
  }
}

}  // namespace

cudaError_t Gather(const GatherArguments& arguments, cudaStream_t stream) {
  return Launch(GatherKernel, arguments.chunk.count, kBlockThreads, stream, arguments);
}

cudaError_t BiasRelu(const float* bias, int rows, int columns, float* x, cudaStream_t stream) {
  const int count = rows * columns;
  return Launch(BiasReluKernel, BlocksFor(count, kBlockThreads), kBlockThreads, stream, bias, count,
                columns, x);
}

cudaError_t SoftmaxCrossEntropy(const SoftmaxArguments& arguments, cudaStream_t stream) {
  return Launch(SoftmaxKernel, BlocksFor(arguments.rows, kSoftmaxWarps),
                dim3(kWarpThreads, kSoftmaxWarps), stream, arguments);
}

}  // namespace ringmaster::cuda
