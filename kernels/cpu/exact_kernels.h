// The loops of the exact perceptron: one table of functions per instruction set, all compiled from
// exact_kernels_impl.h and kernels/exact.h, and all with the same bits.
//
// Numbers of a micro-shard lie "in lanes", [units, kMicroShard]: a unit's values for all samples of
// the micro-shard one after the other, so that a vector computes one unit for many samples; or "in
// rows", [samples, stride] as everywhere else. Lanes past the samples of a short micro-shard hold
// anything and are never read back. Buffers need no alignment. Thread safety: pure functions over
// their arguments.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/sampling_plan.h"
#include "kernels/exact.h"

namespace ringmaster {

struct PixelProduct;

// Rows are padded to this many floats.
inline constexpr int kExactPadding = 16;

// A dense layer over one micro-shard.
struct ExactLayer {
  const float* weights = nullptr;  // [inputs, outputs]
  const float* bias = nullptr;     // [outputs]
  int inputs = 0;
  int outputs = 0;
  bool relu = false;
};

// The gradient by a layer's weights, of all micro-shards of a chunk: for each of them one chain
// over its rows of factor * delta, quantised, and their sum.
struct ExactGradient {
  // The factors: pixels, [inputs, rows] with pixel_stride, a multiple of kMicroShard and zero
  // between `rows` and the next; they stand for values[pixel]. Or, where pixels is null, numbers in
  // lanes, micro-shard after micro-shard at a distance of factor_stride.
  const uint8_t* pixels = nullptr;
  ptrdiff_t pixel_stride = 0;
  const float* values = nullptr;  // [256]
  const float* factors = nullptr;
  ptrdiff_t factor_stride = 0;
  const float* delta = nullptr;  // [rows, outputs] in rows
  ptrdiff_t delta_stride = 0;    // a multiple of kExactPadding, at least `outputs`
  int rows = 0;
  int inputs = 0;
  int outputs = 0;
  bool accumulate = false;      // add to what is there
  int64_t* gradient = nullptr;  // [inputs, outputs] in quanta
};

// The state is updated by the mean gradient: gradient[i] * mean_scale.
struct ExactUpdate {
  size_t count = 0;
  const int64_t* gradient = nullptr;  // [count], as the next three
  double mean_scale = 0;
  float* parameters = nullptr;
  float* first_moment = nullptr;   // unused by SGD
  float* second_moment = nullptr;  // unused by SGD
};

struct ExactKernels {
  const char* name;  // "AVX-512", "AVX2" or "portable"

  // out[i] = a[i] * b[i] + c[i], rounded once: what all the rest is made of. For tests.
  void (*mul_add)(const float* a, const float* b, const float* c, size_t count, float* out);
  // As those of VectorKernels, multiply_pixels without `accumulate`.
  void (*transpose_bytes)(const uint8_t* in, ptrdiff_t in_stride, int rows, int columns,
                          uint8_t* out, ptrdiff_t out_stride);
  void (*multiply_pixels)(const PixelProduct& product);
  // The rest of the first layer: bias and ReLU on `z`, [kMicroShard, stride] in rows, to `out`,
  // [RoundUp(outputs, kExactPadding), kMicroShard] in lanes.
  void (*activate)(const ExactLayer& layer, const float* z, ptrdiff_t stride, float* out);
  // in: [inputs] and out: [outputs], both in lanes.
  void (*forward)(const ExactLayer& layer, const float* in, float* out);
  // The gradient by the layer's input, which was the activation `in` of a ReLU. All in lanes.
  void (*backward)(const ExactLayer& layer, const float* in, const float* delta, float* delta_in);
  // logits: [classes] in lanes; becomes softmax - onehot. labels, losses, predictions:
  // [kMicroShard].
  void (*softmax)(int classes, const uint8_t* labels, float* logits, float* losses,
                  int32_t* predictions);
  // in: [units] in lanes, units a multiple of kExactPadding. out: [kMicroShard, stride] in rows.
  void (*to_rows)(const float* in, int units, ptrdiff_t stride, float* out);
  // False if a micro-shard's gradient is not representable: then the sums mean nothing.
  bool (*gradient)(const ExactGradient& gradient);
  void (*adam)(const ExactUpdate& update, const exact::AdamFactors& factors);
  void (*sgd)(const ExactUpdate& update, float rate);
};

// As VectorKernels: see instruction_set.h.
extern const ExactKernels kPortableExactKernels;
extern const ExactKernels kAvx2ExactKernels;    // x86-64 only
extern const ExactKernels kAvx512ExactKernels;  // x86-64 only

}  // namespace ringmaster
