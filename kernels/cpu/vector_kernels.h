// The element-wise arithmetic of the CPU backend, and the product of a sparse pixel matrix with a
// dense one: one table of functions per instruction set, all compiled from vector_kernels_impl.h.
//
// The tables agree with each other within rounding, not to the bit (only some have a fused
// multiply-add). Matrices are row-major; a stride is the distance of two rows, in elements.
// Buffers need no alignment unless said. Thread safety: pure functions over their arguments.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ringmaster {

// Logit rows are padded to this many floats.
inline constexpr int kLogitPadding = 16;
// Pixel rows given to multiply_pixels are padded to this many bytes, with zeros.
inline constexpr int kPixelPadding = 64;

// Softmax, cross-entropy and its gradient for `rows` samples. The losses come from the logits
// (log(1 + sum of the others' exponentials) + max - logit), never from a rounded probability.
struct SoftmaxBatch {
  // [rows, stride]. In: x W without the bias. Out: softmax - onehot; zeros in the padding.
  float* logits = nullptr;
  const float* bias = nullptr;      // [classes]
  const uint8_t* labels = nullptr;  // [rows], each below `classes`
  float* losses = nullptr;          // [rows] out; NaN or infinity where the logits were not finite
  int32_t* predictions = nullptr;   // [rows] out: the first class with the largest logit
  int rows = 0;
  int classes = 0;
  ptrdiff_t stride = 0;  // a multiple of kLogitPadding, at least `classes`
};

// c = value[pixels] b, or c += with `accumulate`, passing over the pixels that are zero.
struct PixelProduct {
  const uint8_t* pixels = nullptr;  // [rows, depth], readable and zero up to kPixelPadding
  ptrdiff_t pixel_stride = 0;       // a multiple of kPixelPadding
  const float* values = nullptr;    // [256]: what each pixel stands for; values[0] is 0
  const float* b = nullptr;         // [depth, columns]
  ptrdiff_t b_stride = 0;
  float* c = nullptr;  // [rows, columns]
  ptrdiff_t c_stride = 0;
  int rows = 0;
  int depth = 0;
  int columns = 0;  // a multiple of 16
  bool accumulate = false;
};

// One Adam step in Keras's form (keras/src/optimizers/adam.py), with g = scale * gradient:
//   m += (g - m) (1 - beta1);  v += (g^2 - v) (1 - beta2);  w -= alpha m / (sqrt(v) + epsilon)
// where alpha = learning_rate sqrt(1 - beta2^t) / (1 - beta1^t).
struct AdamUpdate {
  size_t count = 0;
  const float* gradient = nullptr;  // [count]
  float* parameters = nullptr;      // [count]
  float* first_moment = nullptr;    // [count]
  float* second_moment = nullptr;   // [count]
  float scale = 0;
  float one_minus_beta1 = 0;
  float one_minus_beta2 = 0;
  float alpha = 0;
  float epsilon = 0;
};

struct VectorKernels {
  const char* name;  // "AVX-512", "AVX2" or "portable"

  // out[i] = pixels[i] * (1 / 255)
  void (*scale_pixels)(const uint8_t* pixels, size_t count, float* out);
  // out[c, r] = in[r, c]. rows and columns are rounded up to multiples of 16: both matrices must be
  // that large.
  void (*transpose_bytes)(const uint8_t* in, ptrdiff_t in_stride, int rows, int columns,
                          uint8_t* out, ptrdiff_t out_stride);
  void (*multiply_pixels)(const PixelProduct& product);
  // x = max(0, x + bias); NaN stays NaN. x: [rows, columns].
  void (*bias_relu)(const float* bias, int rows, int columns, ptrdiff_t stride, float* x);
  void (*softmax_cross_entropy)(const SoftmaxBatch& batch);
  // delta = 0 where activation <= 0. Both [rows, columns] with the same stride.
  void (*relu_gradient)(const float* activation, int rows, int columns, ptrdiff_t stride,
                        float* delta);
  // sums[c] += sum of x[:, c]. In double: the order of the rows hardly shows.
  void (*add_column_sums)(const float* x, int rows, int columns, ptrdiff_t stride, double* sums);
  void (*adam)(const AdamUpdate& update);
  // parameters -= rate * gradient
  void (*sgd)(const float* gradient, size_t count, float rate, float* parameters);
};

// Each is defined in a source file of its own, compiled for that instruction set. Use
// instruction_set.h to choose: calling one that the CPU lacks is an illegal instruction.
extern const VectorKernels kPortableKernels;
extern const VectorKernels kAvx2Kernels;    // x86-64 only
extern const VectorKernels kAvx512Kernels;  // x86-64 only

}  // namespace ringmaster
