// The CUDA backend's own kernels: plain pointers and numbers, no policy.
//
// Every function enqueues on `stream` and returns the launch's error. All memory is the device's,
// or mapped where it says so. Matrices are row-major without padding; B is the number of samples of
// a chunk, C the number of classes. Sums have a fixed order or are of integers: the same work gives
// the same bits.
//
// Thread safety: as CUDA launches.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "common/sampling_plan.h"
#include "common/step_tail.h"

namespace ringmaster::cuda {

// StepRecord's measured part, added to with atomics. The flags come from the host.
struct DeviceRecord {
  unsigned long long loss_sum_quanta;
  unsigned long long correct;
  unsigned long long samples;
  unsigned long long digest;
  unsigned int non_finite;
  unsigned int out_of_range;  // not 0: a gradient cannot be represented (exact_kernels.h)
};

// Takes the samples of B positions: pixels / 255 and labels. The only place where pixels are read:
// samples and digest are counted here.
struct GatherArguments {
  const uint8_t* images;  // [samples, pixels]
  const uint8_t* labels;  // [samples]
  int pixels;
  Permutation order;    // which sample stands at a position ...
  bool in_order;        // ... unless this: position and sample are the same
  PositionRange chunk;  // B positions; at least one
  float* x;             // [B, pixels] out
  uint8_t* targets;     // [B] out
  DeviceRecord* record;
};
cudaError_t Gather(const GatherArguments& arguments, cudaStream_t stream);

// x = max(0, x + bias); NaN stays NaN. x: [rows, columns].
cudaError_t BiasRelu(const float* bias, int rows, int columns, float* x, cudaStream_t stream);

// Softmax, cross-entropy and its gradient. The losses come from the logits (log(1 + sum of the
// others' exponentials) + max - logit), never from a rounded probability.
struct SoftmaxArguments {
  float* logits;           // [B, C]; in: h W without the bias; out: softmax - onehot
  const float* bias;       // [C]
  const uint8_t* targets;  // [B], each below C
  uint8_t* predictions;    // [B] out: the first class with the largest logit
  DeviceRecord* record;    // loss, correct and non_finite are counted here
  int rows;
  int classes;  // at most 256
};
cudaError_t SoftmaxCrossEntropy(const SoftmaxArguments& arguments, cudaStream_t stream);

// The gradient by a layer's pre-activations and by its bias: delta = 0 where activation <= 0 (none
// if `activation` is null: the last layer), then bias_gradient = the sums of delta's columns, added
// to what is there if `accumulate`. Sums in double. delta, activation: [rows, columns].
cudaError_t BiasGradient(const float* activation, int rows, int columns, bool accumulate,
                         float* delta, float* bias_gradient, cudaStream_t stream);

// Writes the record and this rank's times to the tail, zeros to the other ranks' times.
struct TailArguments {
  const DeviceRecord* record;
  uint32_t flags[tail::kFlagCount];
  float compute_us;
  float all_reduce_us;
  int rank;
  int world_size;
  float* tail;  // [tail::Size(world_size)]
};
cudaError_t WriteTail(const TailArguments& arguments, cudaStream_t stream);

// What one update is to do, decided once on the device and obeyed by every thread of it.
struct UpdateControl {
  uint32_t apply;  // 0: the backend was poisoned, nothing may change
  float scale;     // 1 / samples of the global batch
  float alpha;     // Adam: the learning rate with the bias correction
};

// Publishes the reduced tail. With `control`, also begins an update: reads the poison, advances the
// step and computes the update's factors. The poison is read by one thread, so that an update is
// applied as a whole or not at all.
struct PublishArguments {
  const float* tail;  // reduced
  int world_size;
  const uint32_t* poisoned;    // mapped
  float* published_tail;       // mapped: a copy of the tail
  uint32_t* published_intact;  // mapped: 1, or 0 if poisoned
  UpdateControl* control;      // null: an evaluation
  uint64_t* step;              // of the state; unused in an evaluation, as all below
  float learning_rate;
  float beta1;
  float beta2;
};
cudaError_t Publish(const PublishArguments& arguments, cudaStream_t stream);

// One step of Adam in Keras's form (keras/src/optimizers/adam.py), with g = scale * gradient:
//   m += (g - m) (1 - beta1);  v += (g^2 - v) (1 - beta2);  w -= alpha m / (sqrt(v) + epsilon)
// where alpha = learning_rate sqrt(1 - beta2^t) / (1 - beta1^t).
struct AdamArguments {
  const UpdateControl* control;
  size_t count;
  const float* gradient;  // [count], as the next three
  float* parameters;
  float* first_moment;
  float* second_moment;
  float one_minus_beta1;
  float one_minus_beta2;
  float epsilon;
};
cudaError_t Adam(const AdamArguments& arguments, cudaStream_t stream);

// parameters -= learning_rate * scale * gradient
cudaError_t Sgd(const UpdateControl* control, size_t count, const float* gradient,
                float learning_rate, float* parameters, cudaStream_t stream);

}  // namespace ringmaster::cuda
