// The kernels of reproducible runs: kernels/exact.h on the device, one thread for each chain.
//
// As kernels.h in all else. Compiled without contraction (--fmad=false).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/kernels.h"
#include "kernels/exact.h"

namespace ringmaster::cuda {

// out = x weights + bias, then ReLU if asked for.
struct ExactForwardArguments {
  const float* x;        // [rows, inputs]
  const float* weights;  // [inputs, outputs]
  const float* bias;     // [outputs]
  int rows;
  int inputs;
  int outputs;
  bool skip_zeros;  // x holds pixels
  bool relu;
  float* out;  // [rows, outputs]
};
cudaError_t ExactForward(const ExactForwardArguments& arguments, cudaStream_t stream);

// As SoftmaxCrossEntropy, of logits that have their bias already: arguments.bias is not read.
cudaError_t ExactSoftmax(const SoftmaxArguments& arguments, cudaStream_t stream);

// The gradient by a layer's input, which was the activation of a ReLU.
struct ExactDeltaArguments {
  const float* activation;  // [rows, inputs]
  const float* weights;     // [inputs, outputs]
  const float* delta;       // [rows, outputs]
  int rows;
  int inputs;
  int outputs;
  float* delta_in;  // [rows, inputs] out
};
cudaError_t ExactDelta(const ExactDeltaArguments& arguments, cudaStream_t stream);

// The gradients by a layer's weights and biases in quanta, summed over the micro-shards that the
// rows are.
struct ExactGradientArguments {
  const float* x;      // [rows, inputs]
  const float* delta;  // [rows, outputs]
  int rows;
  int inputs;
  int outputs;
  bool accumulate;         // add to what is there
  int64_t* gradient;       // [inputs, outputs]
  int64_t* bias_gradient;  // [outputs]
  DeviceRecord* record;    // out_of_range is raised here
};
cudaError_t ExactGradient(const ExactGradientArguments& arguments, cudaStream_t stream);

// As TailArguments.
struct ExactTailArguments {
  const DeviceRecord* record;
  uint32_t flags[tail::kFlagCount];
  int64_t compute_ns;
  int64_t all_reduce_ns;
  int rank;
  int world_size;
  int64_t* tail;  // [tail::WholeSize(world_size)]
};
cudaError_t ExactWriteTail(const ExactTailArguments& arguments, cudaStream_t stream);

// What one update is to do, as UpdateControl.
struct ExactControl {
  uint32_t apply;
  double mean_scale;  // exact::MeanScale()
  exact::AdamFactors factors;
};

// As PublishArguments. An update whose record says that a gradient was out of range writes `poison`
// to the poison, if there is none yet: neither it nor any update after it applies.
struct ExactPublishArguments {
  const int64_t* tail;  // reduced
  int world_size;
  uint32_t* poisoned;  // mapped
  uint32_t poison;
  int64_t* published_tail;
  uint32_t* published_intact;
  ExactControl* control;
  uint64_t* step;
  float learning_rate;
  float beta1;
  float beta2;
  float epsilon;
};
cudaError_t ExactPublish(const ExactPublishArguments& arguments, cudaStream_t stream);

struct ExactUpdateArguments {
  const ExactControl* control;
  size_t count;
  const int64_t* gradient;  // [count] in quanta, as the next three
  float* parameters;
  float* first_moment;   // unused by SGD
  float* second_moment;  // unused by SGD
  float learning_rate;   // SGD only
};
cudaError_t ExactAdam(const ExactUpdateArguments& arguments, cudaStream_t stream);
cudaError_t ExactSgd(const ExactUpdateArguments& arguments, cudaStream_t stream);

}  // namespace ringmaster::cuda
