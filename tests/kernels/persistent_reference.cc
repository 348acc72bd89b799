#include "tests/kernels/persistent_reference.h"

#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace ringmaster::testing {

PersistentReference::PersistentReference(const ModelSpec& model, const OptimizerSpec& optimizer,
                                         const SamplingPlan& plan, const Dataset& dataset,
                                         const TrainState& state)
    : inputs_(model.layers[0]),
      hidden_(model.layers[1]),
      classes_(model.layers[2]),
      optimizer_(optimizer),
      plan_(plan),
      dataset_(dataset),
      updates_(state.step),
      w_(state.parameters.begin(), state.parameters.end()),
      m_(state.first_moment.begin(), state.first_moment.end()),
      v_(state.second_moment.begin(), state.second_moment.end()),
      gradient_(w_.size()),
      h_(hidden_),
      z_(classes_),
      dh_(hidden_) {}

void PersistentReference::Forward(const uint8_t* image) {
  const double* const bias1 = &w_[size_t(inputs_) * hidden_];
  const double* const kernel2 = bias1 + hidden_;
  const double* const bias2 = kernel2 + hidden_ * classes_;
  std::copy(bias1, bias1 + hidden_, h_.begin());
  for (int p = 0; p < inputs_; ++p) {
    if (image[p] == 0) continue;
    const double x = image[p] / 255.0;
    for (int u = 0; u < hidden_; ++u) h_[u] += x * w_[size_t(p) * hidden_ + u];
  }
  std::copy(bias2, bias2 + classes_, z_.begin());
  for (int u = 0; u < hidden_; ++u) {
    h_[u] = std::max(h_[u], 0.0);
    for (int c = 0; c < classes_; ++c) z_[c] += h_[u] * kernel2[u * classes_ + c];
  }
}

void PersistentReference::CountSample(int label, ReferenceRecord* record) const {
  const int best = static_cast<int>(std::max_element(z_.begin(), z_.end()) - z_.begin());
  double total = 0, second = -1e30;
  for (int c = 0; c < classes_; ++c) {
    total += std::exp(z_[c] - z_[best]);
    if (c != best) second = std::max(second, z_[c]);
  }
  record->loss_sum += std::log(total) + z_[best] - z_[label];
  record->correct += best == label;
  record->samples += 1;
  record->smallest_margin = std::min(record->smallest_margin, z_[best] - second);
}

void PersistentReference::Backward(const uint8_t* image, int label) {
  const size_t bias1 = size_t(inputs_) * hidden_;
  const size_t kernel2 = bias1 + hidden_;
  const size_t bias2 = kernel2 + hidden_ * classes_;
  const double largest = *std::max_element(z_.begin(), z_.end());
  double total = 0;
  for (double& z : z_) total += z = std::exp(z - largest);
  for (int c = 0; c < classes_; ++c) {
    z_[c] = z_[c] / total - (c == label ? 1 : 0);
    gradient_[bias2 + c] += z_[c];
  }
  for (int u = 0; u < hidden_; ++u) {
    dh_[u] = 0;
    for (int c = 0; c < classes_; ++c) {
      gradient_[kernel2 + u * classes_ + c] += h_[u] * z_[c];
      dh_[u] += h_[u] > 0 ? z_[c] * w_[kernel2 + u * classes_ + c] : 0;
    }
    gradient_[bias1 + u] += dh_[u];
  }
  for (int p = 0; p < inputs_; ++p) {
    if (image[p] == 0) continue;
    const double x = image[p] / 255.0;
    for (int u = 0; u < hidden_; ++u) gradient_[size_t(p) * hidden_ + u] += x * dh_[u];
  }
}

void PersistentReference::Update(double count) {
  ++updates_;
  const double b1 = optimizer_.beta1, b2 = optimizer_.beta2, rate = optimizer_.learning_rate;
  const double alpha =
      rate * std::sqrt(1 - std::pow(b2, double(updates_))) / (1 - std::pow(b1, double(updates_)));
  for (size_t i = 0; i < w_.size(); ++i) {
    const double g = gradient_[i] / count;
    if (optimizer_.kind == OptimizerSpec::Kind::kSgd) {
      w_[i] -= rate * g;
      continue;
    }
    m_[i] += (g - m_[i]) * (1 - b1);
    v_[i] += (g * g - v_[i]) * (1 - b2);
    w_[i] -= alpha * m_[i] / (std::sqrt(v_[i]) + optimizer_.epsilon);
  }
}

ReferenceRecord PersistentReference::Step(uint32_t epoch, uint32_t step) {
  ReferenceRecord record;
  std::fill(gradient_.begin(), gradient_.end(), 0.0);
  const Permutation order = plan_.Order(epoch);
  const PositionRange batch = plan_.Batch(step);
  for (uint32_t position = batch.first; position < batch.end(); ++position) {
    const uint32_t id = order(position);
    const uint8_t* const image = &dataset_.train.images[size_t{id} * inputs_];
    Forward(image);
    CountSample(dataset_.train.labels[id], &record);
    record.digest += SampleFingerprint(id);
    Backward(image, dataset_.train.labels[id]);
  }
  Update(batch.count);
  return record;
}

ReferenceRecord PersistentReference::Evaluate() {
  ReferenceRecord record;
  for (uint32_t i = 0; i < dataset_.test.num_samples; ++i) {
    Forward(&dataset_.test.images[size_t{i} * inputs_]);
    CountSample(dataset_.test.labels[i], &record);
  }
  return record;
}

TrainState RandomState(const ModelSpec& model, uint64_t seed, bool random_biases) {
  std::mt19937_64 random(seed);
  TrainState state;
  for (size_t layer = 0; layer + 1 < model.layers.size(); ++layer) {
    const int in = model.layers[layer], out = model.layers[layer + 1];
    const float limit = std::sqrt(6.0f / static_cast<float>(in + out));
    std::uniform_real_distribution<float> uniform(-limit, limit);
    for (int i = 0; i < in * out; ++i) state.parameters.push_back(uniform(random));
    for (int i = 0; i < out; ++i) {
      state.parameters.push_back(random_biases ? uniform(random) : 0.0f);
    }
  }
  state.first_moment.assign(state.parameters.size(), 0.0f);
  state.second_moment.assign(state.parameters.size(), 0.0f);
  return state;
}

double RelativeError(const std::vector<float>& a, const std::vector<double>& b) {
  double difference = 0, norm = 0;
  if (a.size() != b.size()) return std::numeric_limits<double>::quiet_NaN();
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

Dataset RandomDataset(uint32_t samples, int pixels, int live, int classes, uint64_t seed) {
  std::mt19937 random(static_cast<uint32_t>(seed));
  std::vector<int> order(pixels);
  for (int i = 0; i < pixels; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random);
  Dataset dataset;
  dataset.rows = 1;
  dataset.columns = pixels;
  dataset.num_classes = classes;
  for (DatasetSplit* split : {&dataset.train, &dataset.test}) {
    split->num_samples = samples;
    split->images.assign(size_t{samples} * pixels, 0);
    for (uint32_t i = 0; i < samples; ++i) {
      split->labels.push_back(static_cast<uint8_t>(random() % classes));
      for (int j = 0; j < live; ++j) {
        if (random() % 4 != 0) continue;
        split->images[size_t{i} * pixels + order[j]] = static_cast<uint8_t>(random() % 256);
      }
    }
  }
  return dataset;
}

namespace {

bool ReadIdx(const std::string& path, size_t header, std::vector<uint8_t>* body) {
  gzFile file = gzopen((path + ".gz").c_str(), "rb");
  if (file == nullptr) file = gzopen(path.c_str(), "rb");
  if (file == nullptr) return false;
  std::vector<uint8_t> chunk(1 << 20);
  int count;
  while ((count = gzread(file, chunk.data(), static_cast<unsigned>(chunk.size()))) > 0) {
    body->insert(body->end(), chunk.begin(), chunk.begin() + count);
  }
  gzclose(file);
  if (count < 0 || body->size() < header) return false;
  body->erase(body->begin(), body->begin() + static_cast<ptrdiff_t>(header));
  return true;
}

}  // namespace

Dataset ReadMnist(const std::string& directory) {
  Dataset dataset;
  dataset.rows = dataset.columns = 28;
  dataset.num_classes = 10;
  const auto path = [&](int i) { return directory + "/" + kDatasetFileNames[size_t(i)]; };
  if (!ReadIdx(path(0), 16, &dataset.train.images) || !ReadIdx(path(1), 8, &dataset.train.labels) ||
      !ReadIdx(path(2), 16, &dataset.test.images) || !ReadIdx(path(3), 8, &dataset.test.labels)) {
    return {};
  }
  dataset.train.num_samples = static_cast<uint32_t>(dataset.train.labels.size());
  dataset.test.num_samples = static_cast<uint32_t>(dataset.test.labels.size());
  return dataset;
}

}  // namespace ringmaster::testing
