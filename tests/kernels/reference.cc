#include "tests/kernels/reference.h"

#include <algorithm>
#include <cmath>

namespace ringmaster::reference {
namespace {

using Vector = std::vector<double>;

// One dense layer: its place in the flat parameters.
struct Dense {
  size_t inputs;
  size_t outputs;
  size_t first;  // kernel [inputs, outputs], then bias [outputs]

  size_t kernel(size_t in, size_t out) const { return first + in * outputs + out; }
  size_t bias(size_t out) const { return first + inputs * outputs + out; }
};

std::vector<Dense> MakeLayers(const std::vector<int>& widths) {
  std::vector<Dense> layers;
  size_t first = 0;
  for (size_t i = 0; i + 1 < widths.size(); ++i) {
    layers.push_back({size_t(widths[i]), size_t(widths[i + 1]), first});
    first += (layers.back().inputs + 1) * layers.back().outputs;
  }
  return layers;
}

Vector Apply(const Dense& layer, const Vector& w, const Vector& x) {
  Vector y(layer.outputs);
  for (size_t o = 0; o < layer.outputs; ++o) y[o] = w[layer.bias(o)];
  for (size_t i = 0; i < layer.inputs; ++i) {
    if (x[i] == 0) continue;
    for (size_t o = 0; o < layer.outputs; ++o) y[o] += x[i] * w[layer.kernel(i, o)];
  }
  return y;
}

double LogSumExp(const Vector& z) {
  const double max = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (const double value : z) sum += std::exp(value - max);
  return max + std::log(sum);
}

// Adds the layer's gradient and returns the gradient by its input.
Vector Backpropagate(const Dense& layer, const Vector& w, const Vector& x, const Vector& dy,
                     Vector* gradient) {
  Vector dx(layer.inputs);
  for (size_t o = 0; o < layer.outputs; ++o) (*gradient)[layer.bias(o)] += dy[o];
  for (size_t i = 0; i < layer.inputs; ++i) {
    double sum = 0;
    for (size_t o = 0; o < layer.outputs; ++o) sum += dy[o] * w[layer.kernel(i, o)];
    dx[i] = sum;
    if (x[i] == 0) continue;
    for (size_t o = 0; o < layer.outputs; ++o) (*gradient)[layer.kernel(i, o)] += x[i] * dy[o];
  }
  return dx;
}

// The input of each layer, then the logits.
std::vector<Vector> Activations(const std::vector<Dense>& layers, const Vector& w, Vector input) {
  std::vector<Vector> values = {std::move(input)};
  for (size_t i = 0; i < layers.size(); ++i) {
    Vector y = Apply(layers[i], w, values.back());
    if (i + 1 < layers.size()) {
      for (double& value : y) value = std::max(value, 0.0);
    }
    values.push_back(std::move(y));
  }
  return values;
}

void Backward(const std::vector<Dense>& layers, const Vector& w, const std::vector<Vector>& values,
              size_t label, Vector* gradient) {
  Vector delta = values.back();
  const double normaliser = LogSumExp(delta);
  for (double& value : delta) value = std::exp(value - normaliser);
  delta[label] -= 1;
  for (size_t i = layers.size(); i-- > 0;) {
    delta = Backpropagate(layers[i], w, values[i], delta, gradient);
    for (size_t j = 0; j < delta.size(); ++j) {
      if (values[i][j] <= 0) delta[j] = 0;
    }
  }
}

void Score(const Vector& logits, size_t label, Sums* sums) {
  const auto best = std::max_element(logits.begin(), logits.end());
  double second = -INFINITY;
  for (auto it = logits.begin(); it != logits.end(); ++it) {
    if (it != best) second = std::max(second, *it);
  }
  const size_t prediction = best - logits.begin();
  sums->loss += LogSumExp(logits) - logits[label];
  sums->correct += prediction == label ? 1 : 0;
  sums->predictions.push_back(static_cast<int>(prediction));
  sums->margins.push_back(*best - second);
}

Sums Run(const std::vector<int>& widths, const Vector& w, const DatasetSplit& split,
         const std::vector<uint32_t>& samples, bool backward) {
  const std::vector<Dense> layers = MakeLayers(widths);
  Sums sums;
  if (backward) sums.gradient.resize(w.size());
  for (const uint32_t sample : samples) {
    Vector input(widths.front());
    for (size_t i = 0; i < input.size(); ++i) {
      input[i] = split.images[sample * input.size() + i] / 255.0;
    }
    const std::vector<Vector> values = Activations(layers, w, std::move(input));
    Score(values.back(), split.labels[sample], &sums);
    if (backward) Backward(layers, w, values, split.labels[sample], &sums.gradient);
  }
  return sums;
}

}  // namespace

State FromTrainState(const TrainState& state) {
  const auto widen = [](const std::vector<float>& v) { return Vector(v.begin(), v.end()); };
  return {widen(state.parameters), widen(state.first_moment), widen(state.second_moment),
          state.step};
}

Sums Forward(const std::vector<int>& layers, const Vector& parameters, const DatasetSplit& split,
             const std::vector<uint32_t>& samples) {
  return Run(layers, parameters, split, samples, false);
}

Sums ForwardBackward(const std::vector<int>& layers, const Vector& parameters,
                     const DatasetSplit& split, const std::vector<uint32_t>& samples) {
  return Run(layers, parameters, split, samples, true);
}

void Update(const OptimizerSpec& optimizer, const Vector& gradient_sum, double count,
            State* state) {
  const double rate = optimizer.learning_rate;
  const double beta1 = optimizer.beta1;
  const double beta2 = optimizer.beta2;
  ++state->step;
  const double t = static_cast<double>(state->step);
  const double alpha = rate * std::sqrt(1 - std::pow(beta2, t)) / (1 - std::pow(beta1, t));
  for (size_t i = 0; i < gradient_sum.size(); ++i) {
    const double g = gradient_sum[i] / count;
    if (optimizer.kind == OptimizerSpec::Kind::kSgd) {
      state->parameters[i] -= rate * g;
      continue;
    }
    double& m = state->first_moment[i];
    double& v = state->second_moment[i];
    m = beta1 * m + (1 - beta1) * g;
    v = beta2 * v + (1 - beta2) * g * g;
    state->parameters[i] -= alpha * m / (std::sqrt(v) + optimizer.epsilon);
  }
}

}  // namespace ringmaster::reference
