// The network of the CPU backend: forward, backward and update over chunks of samples, with numbers
// of one kind. Perceptron computes with floats and oneDNN, ExactPerceptron with kernels/exact.h.
//
//   for each chunk:  Load() for each row; Forward(); Backward()
//   once:            FinishGradients()
//   with the sum:    Update()
//
// Thread safety: one thread at a time. Parameters, gradients and state given are borrowed for the
// call; all have ModelSpec's layout.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/model.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/device_span.h"

namespace ringmaster {

class Network {
 public:
  explicit Network(int max_rows)
      : max_rows_(max_rows), labels_(max_rows), losses_(max_rows), predictions_(max_rows) {}
  virtual ~Network() = default;

  // For people: instruction set, libraries, first layer.
  virtual std::string description() const = 0;
  // What the gradients given are made of.
  virtual Element element() const = 0;

  // Larger slices are computed chunk by chunk, the gradients accumulating.
  int max_rows() const { return max_rows_; }
  // Takes the sample of `row` of the next chunk. pixels: [inputs].
  void Load(int row, const uint8_t* pixels, uint8_t label) {
    LoadPixels(row, pixels);
    labels_[row] = label;
  }

  // Computes the loss, prediction and logit gradient of the first `rows` samples loaded; `rows` is
  // in [1, max_rows()].
  virtual absl::Status Forward(const float* parameters, int rows) = 0;
  float loss(int row) const { return losses_[row]; }
  bool is_correct(int row) const { return predictions_[row] == static_cast<int32_t>(labels_[row]); }
  int32_t prediction(int row) const { return predictions_[row]; }

  // After Forward() on the same chunk: adds the chunk's gradient sums to gradients, of
  // num_parameters elements. The first chunk of a slice (`first_chunk`) overwrites instead. They
  // are complete after FinishGradients().
  virtual absl::Status Backward(const float* parameters, bool first_chunk,
                                DeviceSpan gradients) = 0;
  // Returns false if a gradient cannot be represented: then the sums mean nothing.
  virtual bool FinishGradients(DeviceSpan gradients) = 0;

  // The optimizer's step with the sums over `samples` samples of all ranks; advances state->step.
  virtual void Update(const OptimizerSpec& optimizer, uint64_t samples, DeviceSpan gradients,
                      TrainState* state) const = 0;

 protected:
  virtual void LoadPixels(int row, const uint8_t* pixels) = 0;

  const int max_rows_;
  std::vector<uint8_t> labels_;       // [max_rows]
  AlignedBuffer<float> losses_;       // [max_rows]
  std::vector<int32_t> predictions_;  // [max_rows]: the first class with the largest logit
};

// Rows of a chunk of `model`. 128 rows of the default model are 0.6 MB with its parameters: they
// stay in the L2 cache. Wide models get fewer, to bound the memory. A multiple of 16.
int ChunkRows(const ModelSpec& model);

}  // namespace ringmaster
