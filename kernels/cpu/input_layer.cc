#include "kernels/cpu/input_layer.h"

#include <omp.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/cpu/aligned_buffer.h"

namespace ringmaster {
namespace {

class DenseInput final : public InputLayer {
 public:
  DenseInput(const InputShape& shape, const VectorKernels& kernels)
      : shape_(shape), kernels_(kernels), x_(size_t{1} * shape.max_rows * shape.inputs) {}

  void Load(int row, const uint8_t* pixels) override {
    kernels_.scale_pixels(pixels, shape_.inputs, &x_[size_t{1} * row * shape_.inputs]);
  }

  void Finish(int rows) override { rows_ = rows; }

  absl::Status Forward(const float* weights, Matrix out) override {
    return Multiply(rows_, shape_.outputs, shape_.inputs, X(), {weights, shape_.outputs}, out);
  }

  absl::Status Gradient(ConstMatrix delta, bool accumulate, float* gradient) override {
    return MultiplyTransposedA(shape_.inputs, shape_.outputs, rows_, X(), delta, accumulate,
                               {gradient, shape_.outputs});
  }

 private:
  ConstMatrix X() const { return {x_.data(), shape_.inputs}; }

  const InputShape shape_;
  const VectorKernels& kernels_;
  AlignedBuffer<float> x_;  // [max_rows, inputs]
  int rows_ = 0;
};

class SparseInput final : public InputLayer {
 public:
  SparseInput(const InputShape& shape, int threads, const VectorKernels& kernels)
      : shape_(shape),
        threads_(threads),
        kernels_(kernels),
        pixel_stride_(RoundUp(shape.inputs, kPixelPadding)),
        transposed_stride_(RoundUp(shape.max_rows, kPixelPadding)),
        pixels_(transposed_stride_ * pixel_stride_),
        transposed_(pixel_stride_ * transposed_stride_) {
    for (int i = 0; i < 256; ++i) kernels_.scale_pixels(&kAllPixels[i], 1, &values_[i]);
  }

  void Load(int row, const uint8_t* pixels) override {
    std::memcpy(&pixels_[row * pixel_stride_], pixels, shape_.inputs);
  }

  void Finish(int rows) override {
    // Rows of an earlier, larger chunk must not show in the padding of the transposed matrix.
    const size_t padded = RoundUp(rows, kPixelPadding);
    std::fill(&pixels_[rows * pixel_stride_], &pixels_[0] + padded * pixel_stride_, uint8_t{0});
    rows_ = rows;
    is_transposed_ = false;
  }

  absl::Status Forward(const float* weights, Matrix out) override {
    PixelProduct product;
    product.pixels = pixels_.data();
    product.pixel_stride = pixel_stride_;
    product.b = weights;
    product.b_stride = shape_.outputs;
    product.c = out.data;
    product.c_stride = out.stride;
    product.rows = rows_;
    product.depth = shape_.inputs;
    Run(product);
    return absl::OkStatus();
  }

  absl::Status Gradient(ConstMatrix delta, bool accumulate, float* gradient) override {
    Transpose();
    PixelProduct product;
    product.pixels = transposed_.data();
    product.pixel_stride = transposed_stride_;
    product.b = delta.data;
    product.b_stride = delta.stride;
    product.c = gradient;
    product.c_stride = shape_.outputs;
    product.rows = shape_.inputs;
    product.depth = rows_;
    product.accumulate = accumulate;
    Run(product);
    return absl::OkStatus();
  }

 private:
  static constexpr std::array<uint8_t, 256> kAllPixels = [] {
    std::array<uint8_t, 256> pixels{};
    for (int i = 0; i < 256; ++i) pixels[i] = static_cast<uint8_t>(i);
    return pixels;
  }();

  void Transpose() {
    if (is_transposed_) return;
    kernels_.transpose_bytes(pixels_.data(), pixel_stride_, RoundUp(rows_, kPixelPadding),
                             shape_.inputs, transposed_.data(), transposed_stride_);
    is_transposed_ = true;
  }

  // Each thread computes some rows of the result.
  void Run(PixelProduct product) const {
    product.values = values_;
    product.columns = shape_.outputs;
    if (threads_ == 1) return kernels_.multiply_pixels(product);
    const int share = (product.rows + threads_ - 1) / threads_;
#pragma omp parallel for num_threads(threads_) schedule(static, 1)
    for (int first = 0; first < product.rows; first += share) {
      PixelProduct part = product;
      part.rows = std::min(share, product.rows - first);
      part.pixels += first * product.pixel_stride;
      part.c += first * product.c_stride;
      kernels_.multiply_pixels(part);
    }
  }

  const InputShape shape_;
  const int threads_;
  const VectorKernels& kernels_;
  const ptrdiff_t pixel_stride_;
  const ptrdiff_t transposed_stride_;
  AlignedBuffer<uint8_t> pixels_;      // [max_rows, inputs], both padded with zeros
  AlignedBuffer<uint8_t> transposed_;  // [inputs, max_rows], likewise
  float values_[256];
  int rows_ = 0;
  bool is_transposed_ = false;
};

}  // namespace

std::unique_ptr<InputLayer> CreateDenseInput(const InputShape& shape,
                                             const VectorKernels& kernels) {
  return std::make_unique<DenseInput>(shape, kernels);
}

std::unique_ptr<InputLayer> CreateSparseInput(const InputShape& shape, int threads,
                                              const VectorKernels& kernels) {
  return std::make_unique<SparseInput>(shape, threads, kernels);
}

}  // namespace ringmaster
