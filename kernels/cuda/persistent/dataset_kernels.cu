// What surrounds training on the device: packing the images once, and the evaluation in fp32.
#include <cuda_runtime.h>

#include "common/step_tail.h"
#include "kernels/cuda/persistent/kernel.h"
#include "kernels/cuda/persistent/layout.h"

namespace ringmaster::persistent {
namespace {

constexpr int kEvaluationSamples = 16;  // a block
constexpr int kEvaluationPixels = 112;  // staged at a time
constexpr int kMaxHidden = 128;
constexpr int kMaxEvaluationClasses = 16;

__global__ void MarkLive(const uint8_t* images, uint32_t count, int pixels, uint32_t* live) {
  const int pixel = threadIdx.x + blockDim.x * blockIdx.x;
  if (pixel >= pixels) return;
  uint32_t any = 0;
  for (uint32_t i = blockIdx.y; i < count; i += gridDim.y)
    any |= images[size_t{i} * pixels + pixel];
  if (any != 0) live[pixel] = 1;
}

__global__ void Pack(const uint8_t* images, int pixels, const int* source, uint8_t* packed) {
  const uint8_t* const image = images + size_t{blockIdx.x} * pixels;
  for (int k = threadIdx.x; k < kRowBytes; k += blockDim.x) {
    const int from = source[k];
    packed[size_t{blockIdx.x} * kRowBytes + k] =
        from < 0 ? 0 : (from == pixels ? uint8_t{255} : image[from]);
  }
}

// One thread a hidden unit; each block does kEvaluationSamples images.
__global__ void Evaluate(const uint8_t* images, const uint8_t* labels, uint32_t count, int inputs,
                         int classes, const float* parameters, DeviceRecord* record) {
  __shared__ float x[kEvaluationPixels][kEvaluationSamples];
  __shared__ float h[kEvaluationSamples][kMaxHidden + 1];
  __shared__ float z[kEvaluationSamples][kMaxEvaluationClasses];
  const int hidden = static_cast<int>(blockDim.x);
  const int unit = static_cast<int>(threadIdx.x);
  const uint32_t first = blockIdx.x * kEvaluationSamples;
  const uint32_t samples = min(count - first, uint32_t{kEvaluationSamples});
  float sum[kEvaluationSamples] = {};
  for (int start = 0; start < inputs; start += kEvaluationPixels) {
    const int pixels = min(kEvaluationPixels, inputs - start);
    for (int i = unit; i < kEvaluationSamples * kEvaluationPixels; i += hidden) {
      const int sample = i / kEvaluationPixels;
      const int pixel = i % kEvaluationPixels;
      const bool inside = static_cast<uint32_t>(sample) < samples && pixel < pixels;
      x[pixel][sample] =
          inside ? images[size_t{first + sample} * inputs + start + pixel] / 255.0f : 0.0f;
    }
    __syncthreads();
    for (int pixel = 0; pixel < pixels; ++pixel) {
      const float w = parameters[(start + pixel) * hidden + unit];
      const float4* const row = reinterpret_cast<const float4*>(x[pixel]);
#pragma unroll
      for (int i = 0; i < kEvaluationSamples / 4; ++i) {
        const float4 v = row[i];
        sum[4 * i] = fmaf(v.x, w, sum[4 * i]);
        sum[4 * i + 1] = fmaf(v.y, w, sum[4 * i + 1]);
        sum[4 * i + 2] = fmaf(v.z, w, sum[4 * i + 2]);
        sum[4 * i + 3] = fmaf(v.w, w, sum[4 * i + 3]);
      }
    }
    __syncthreads();
  }
  const float bias = parameters[inputs * hidden + unit];
  for (int i = 0; i < kEvaluationSamples; ++i) h[i][unit] = fmaxf(sum[i] + bias, 0.0f);
  __syncthreads();
  const float* const kernel2 = parameters + (inputs + 1) * hidden;
  for (int i = unit; i < kEvaluationSamples * classes; i += hidden) {
    const int sample = i / classes;
    const int c = i % classes;
    float logit = kernel2[hidden * classes + c];
    for (int u = 0; u < hidden; ++u) logit = fmaf(h[sample][u], kernel2[u * classes + c], logit);
    z[sample][c] = logit;
  }
  __syncthreads();
  if (static_cast<uint32_t>(unit) >= samples) return;
  int best = 0;
  for (int c = 1; c < classes; ++c) best = z[unit][c] > z[unit][best] ? c : best;
  float total = 0;
  for (int c = 0; c < classes; ++c) total += expf(z[unit][c] - z[unit][best]);
  const int label = labels[first + unit];
  const float loss = logf(total) + (z[unit][best] - z[unit][label]);
  atomicAdd(&record->samples, 1ull);
  if (loss < INFINITY) {
    atomicAdd(&record->loss_sum_quanta, static_cast<unsigned long long>(tail::QuantizeLoss(loss)));
    if (best == label) atomicAdd(&record->correct, 1ull);
  } else {
    atomicAdd(&record->non_finite, 1ull);
  }
}

}  // namespace

cudaError_t MarkLivePixels(const uint8_t* images, uint32_t count, int pixels, uint32_t* live,
                           cudaStream_t stream) {
  const dim3 blocks((static_cast<unsigned>(pixels) + 127) / 128, 256);
  MarkLive<<<blocks, 128, 0, stream>>>(images, count, pixels, live);
  return cudaGetLastError();
}

cudaError_t PackImages(const uint8_t* images, uint32_t count, int pixels, const int* source,
                       uint8_t* packed, cudaStream_t stream) {
  Pack<<<count, 256, 0, stream>>>(images, pixels, source, packed);
  return cudaGetLastError();
}

cudaError_t LaunchEvaluation(const uint8_t* images, const uint8_t* labels, uint32_t count,
                             int inputs, int hidden, int classes, const float* parameters,
                             DeviceRecord* record, cudaStream_t stream) {
  if (hidden % 32 != 0 || hidden > kMaxHidden || classes > kMaxEvaluationClasses) {
    return cudaErrorInvalidValue;
  }
  const uint32_t blocks = (count + kEvaluationSamples - 1) / kEvaluationSamples;
  Evaluate<<<blocks, hidden, 0, stream>>>(images, labels, count, inputs, classes, parameters,
                                          record);
  return cudaGetLastError();
}

}  // namespace ringmaster::persistent
