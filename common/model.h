// The model, its parameters' layout, and the state of training.
//
// The model is a multilayer perceptron: dense layers with ReLU between them and softmax
// cross-entropy on the last. All parameters live in one flat fp32 buffer, layer by layer:
//   kernel of layer i   [layers[i], layers[i + 1]], row-major (Keras's `dense/kernel`)
//   bias of layer i     [layers[i + 1]]
// Gradients and optimizer moments use the same layout.
//
// Thread safety: plain values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ringmaster {

// Where one tensor lies in the flat parameter buffer.
struct ParameterSlice {
  std::string name;            // Keras's name: "dense/kernel", "dense/bias", "dense_1/kernel" ...
  std::vector<int64_t> shape;  // [in, out] or [out]
  size_t offset = 0;           // in floats
  size_t count = 0;            // in floats
};

struct ModelSpec {
  static constexpr int kMaxWidth = 1 << 20;

  std::vector<int> layers = {784, 128, 10};  // widths, input first; at least two

  int num_layers() const { return static_cast<int>(layers.size()) - 1; }  // dense layers
  int inputs() const { return layers.front(); }
  int classes() const { return layers.back(); }
  size_t num_parameters() const;
  // Tensors in buffer order.
  std::vector<ParameterSlice> Slices() const;

  // INVALID_ARGUMENT if there are fewer than two layers or a width is outside [1, kMaxWidth].
  absl::Status Validate() const;
  friend bool operator==(const ModelSpec&, const ModelSpec&) = default;
};

struct OptimizerSpec {
  enum class Kind { kAdam, kSgd };
  Kind kind = Kind::kAdam;
  float learning_rate = 1e-3f;
  float beta1 = 0.9f;  // Adam only, as the next two
  float beta2 = 0.999f;
  float epsilon = 1e-7f;  // added to the root of the second moment, not inside the root

  // INVALID_ARGUMENT if a value is not finite or out of range.
  absl::Status Validate() const;
  friend bool operator==(const OptimizerSpec&, const OptimizerSpec&) = default;
};

// Everything that training goes on from. `step` counts the updates applied since the start of the
// run (its Adam bias correction is that of update step + 1 next).
struct TrainState {
  std::vector<float> parameters;     // [num_parameters]
  std::vector<float> first_moment;   // [num_parameters]; zeros under SGD
  std::vector<float> second_moment;  // [num_parameters]; zeros under SGD
  uint64_t step = 0;

  friend bool operator==(const TrainState&, const TrainState&) = default;
};

// Glorot-uniform kernels (Glorot, Bengio, AISTATS 2010: limit sqrt(6 / (in + out))), zero biases
// and moments, step 0. A pure function of (model, seed): the same on every rank.
TrainState InitialState(const ModelSpec& model, uint64_t seed);

// Lower-case hex SHA-256 of the parameters' bytes (fp32, little-endian), in buffer order.
std::string WeightsSha256(const std::vector<float>& parameters);
// The same over parameters, moments and step: equal exactly when training would go on alike.
std::string StateSha256(const TrainState& state);

}  // namespace ringmaster
