// The network of the persistent kernel in double precision, one sample after the other, for its
// tests and its parity benchmark. It shares no arithmetic with the kernel; zero pixels are skipped,
// so that whole trainings are affordable.
//
// Thread safety: one thread uses an object at a time; the data set is borrowed and only read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/dataset.h"
#include "common/model.h"
#include "common/sampling_plan.h"

namespace ringmaster::testing {

struct ReferenceRecord {
  double loss_sum = 0;
  uint64_t correct = 0;
  uint64_t samples = 0;
  uint64_t digest = 0;
  double smallest_margin = 1e30;  // largest logit minus second largest: below rounding, a tie
};

class PersistentReference {
 public:
  PersistentReference(const ModelSpec& model, const OptimizerSpec& optimizer,
                      const SamplingPlan& plan, const Dataset& dataset, const TrainState& state);

  ReferenceRecord Step(uint32_t epoch, uint32_t step);
  ReferenceRecord Evaluate();

  const std::vector<double>& parameters() const { return w_; }
  const std::vector<double>& first_moment() const { return m_; }
  const std::vector<double>& second_moment() const { return v_; }

 private:
  void Forward(const uint8_t* image);
  void CountSample(int label, ReferenceRecord* record) const;
  void Backward(const uint8_t* image, int label);
  void Update(double count);

  const int inputs_, hidden_, classes_;
  const OptimizerSpec optimizer_;
  const SamplingPlan plan_;
  const Dataset& dataset_;
  uint64_t updates_;
  std::vector<double> w_, m_, v_, gradient_, h_, z_, dh_;
};

// A state with random weights of Glorot's scale; non-zero biases if asked for; zero moments.
TrainState RandomState(const ModelSpec& model, uint64_t seed, bool random_biases);

// ||a - b|| / ||b||; NaN if any element is.
double RelativeError(const std::vector<float>& a, const std::vector<double>& b);

// Random images: `live` of the pixels are not always zero, and of those about one in four is not.
Dataset RandomDataset(uint32_t samples, int pixels, int live, int classes, uint64_t seed);

// Reads the four MNIST files, gzip or plain, without any check. Empty on failure.
Dataset ReadMnist(const std::string& directory);

}  // namespace ringmaster::testing
