// An independent multilayer perceptron in double precision, written for clarity: what the backends
// are measured against. It shares no arithmetic and no layout code with them.
//
// Thread safety: pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "common/dataset.h"
#include "common/model.h"

namespace ringmaster::reference {

struct State {
  std::vector<double> parameters;  // in ModelSpec's layout
  std::vector<double> first_moment;
  std::vector<double> second_moment;
  uint64_t step = 0;
};

State FromTrainState(const TrainState& state);

// Sums over a set of samples.
struct Sums {
  std::vector<double> gradient;  // [num_parameters]; empty if only the loss was asked for
  double loss = 0;
  uint64_t correct = 0;
  std::vector<int> predictions;  // [samples]
  std::vector<double> margins;   // [samples]: largest logit minus the second largest
};

// `samples` are indices into `split`. The pixels are divided by 255.
Sums Forward(const std::vector<int>& layers, const std::vector<double>& parameters,
             const DatasetSplit& split, const std::vector<uint32_t>& samples);
Sums ForwardBackward(const std::vector<int>& layers, const std::vector<double>& parameters,
                     const DatasetSplit& split, const std::vector<uint32_t>& samples);

// One update with the mean gradient, gradient_sum / count.
void Update(const OptimizerSpec& optimizer, const std::vector<double>& gradient_sum, double count,
            State* state);

}  // namespace ringmaster::reference
