// The launch interface of the persistent kernel: plain pointers and numbers, no policy.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/sampling_plan.h"

namespace ringmaster::persistent {

// What one step did; sums over the batch. See StepRecord in common/step_tail.h.
struct DeviceRecord {
  unsigned long long loss_sum_quanta;
  unsigned long long correct;
  unsigned long long samples;
  unsigned long long digest;
  unsigned long long non_finite;
};

// Written by the kernel as it ends.
struct KernelReport {
  uint32_t steps_done;  // steps whose update reached the state
};

// The stages of one step, in the profile of a kernel variant that measures itself.
enum Stage {
  kStageWaitImages,
  kStageForward,
  kStageReduce,
  kStageLogits,
  kStageSoftmax,
  kStageWaitGradient,
  kStageHidden,
  kStageBackward,
  kStageUpdate,
  kStageCount
};

struct KernelArguments {
  const uint8_t* images;    // [num_samples, kRowBytes], 16-byte aligned, packed by PackImages
  const uint8_t* labels;    // [num_samples]
  const int* weight_rows;   // [kRowBytes]: row of the pixel's weights in `parameters`, -1 for none
  float* parameters;        // the flat layout of common/model.h
  float* first_moment;      // the same
  float* second_moment;     // the same
  DeviceRecord* records;    // [num_steps], zeroed by the caller
  KernelReport* report;     // written at the end
  const uint32_t* stop;     // checked before each update; not zero: leave without that update
  uint32_t* progress;       // null, or where first_step + the number of steps begun is published
  long long* profile;       // null, or [kStageCount]: clock cycles, summed over the steps
  uint32_t timeout_cycles;  // longest wait at a barrier; then the kernel traps
  SamplingPlan plan;
  uint32_t epoch;
  uint32_t first_step;  // of the epoch
  uint32_t num_steps;
  int inputs;
  int classes;
  int adam;  // otherwise SGD
  float learning_rate;
  float beta1, beta2, epsilon;
  float one_minus_beta1, one_minus_beta2;
  double beta1_power, beta2_power;  // beta^t of the update before the first of this launch
};

// Which of the compiled kernels to run. The first value of each is the one to train with.
struct Variant {
  int blocks = 16;        // 16 or 8: hidden units / 8
  int terms = 2;          // fp16 terms that an fp32 operand is split in: 2 (fp32-grade) or 1
  bool normal = false;    // pixels as fp16 integers and not as fp16 subnormals
  bool multicast = true;  // each image read once for the whole cluster
  bool profile = false;
};

// cudaErrorInvalidValue if that variant is not compiled; else the launch's own error.
cudaError_t LaunchTraining(const KernelArguments& arguments, Variant variant, cudaStream_t stream);

// How many clusters of the variant fit on the current device at once: 0 if none does.
cudaError_t MaxActiveClusters(Variant variant, int* clusters);

// live[p] becomes not zero if pixel p is not zero in some image. images: [count, pixels].
cudaError_t MarkLivePixels(const uint8_t* images, uint32_t count, int pixels, uint32_t* live,
                           cudaStream_t stream);

// packed[i, k] = images[i, source[k]]; source[k] == pixels gives 255 and -1 gives 0.
// images: [count, pixels]; packed: [count, kRowBytes]; source: [kRowBytes].
cudaError_t PackImages(const uint8_t* images, uint32_t count, int pixels, const int* source,
                       uint8_t* packed, cudaStream_t stream);

// Adds the record of images [0, count) under `parameters` to *record (digest excepted).
// hidden is at most 128, a multiple of 32; classes at most 16.
cudaError_t LaunchEvaluation(const uint8_t* images, const uint8_t* labels, uint32_t count,
                             int inputs, int hidden, int classes, const float* parameters,
                             DeviceRecord* record, cudaStream_t stream);

}  // namespace ringmaster::persistent
