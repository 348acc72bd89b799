// The first layer's products, where one factor is a chunk of images: X W going forward and
// X^T delta going back. X is pixels / 255.
//
// Two implementations. The dense one converts the pixels to floats and calls oneDNN. The sparse one
// keeps them as bytes and passes over the zeros: in MNIST 81 % of the pixels, which makes it about
// three times as fast. What is left out is 0 * weight: the two agree within rounding.
//
// Usage: Load() for each row, Finish(), then the products. Thread safety: one thread at a time.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/vector_kernels.h"

namespace ringmaster {

class InputLayer {
 public:
  virtual ~InputLayer() = default;

  // Copies the image of `row`. pixels: [inputs].
  virtual void Load(int row, const uint8_t* pixels) = 0;
  // All `rows` rows of the chunk are loaded.
  virtual void Finish(int rows) = 0;

  // out = X weights. weights: [inputs, outputs], dense; out: [rows, outputs].
  virtual absl::Status Forward(const float* weights, Matrix out) = 0;
  // gradient = X^T delta, or += with `accumulate`. delta: [rows, outputs]; gradient: [inputs,
  // outputs], dense.
  virtual absl::Status Gradient(ConstMatrix delta, bool accumulate, float* gradient) = 0;
};

struct InputShape {
  int inputs = 0;
  int outputs = 0;
  int max_rows = 0;
};

std::unique_ptr<InputLayer> CreateDenseInput(const InputShape& shape, const VectorKernels& kernels);

// shape.outputs must be a multiple of kSparseColumns. Runs on `threads` threads.
inline constexpr int kSparseColumns = 16;
std::unique_ptr<InputLayer> CreateSparseInput(const InputShape& shape, int threads,
                                              const VectorKernels& kernels);

}  // namespace ringmaster
