#include "common/model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "common/philox.h"
#include "common/sha256.h"

namespace ringmaster {
namespace {

static_assert(std::endian::native == std::endian::little, "digests are of little-endian bytes");

size_t KernelSize(const std::vector<int>& layers, size_t layer) {
  return static_cast<size_t>(layers[layer]) * static_cast<size_t>(layers[layer + 1]);
}

template <typename T>
std::string_view BytesOf(const T* values, size_t count) {
  return {reinterpret_cast<const char*>(values), count * sizeof(T)};
}

// Fills `kernel` uniformly from [-limit, limit): one Philox block gives four neighbours.
void FillUniform(uint64_t seed, uint32_t layer, float limit, size_t count, float* kernel) {
  for (size_t i = 0; i < count; i += 4) {
    const Philox4 bits = Philox(seed, PhiloxCounter(RandomUse::kInitialWeights, layer, i / 4));
    for (size_t lane = 0; lane < std::min<size_t>(4, count - i); ++lane) {
      // The bracket is exact in fp32: one rounding, the same everywhere.
      kernel[i + lane] = (2 * UnitFloat(bits.word[lane]) - 1) * limit;
    }
  }
}

absl::Status CheckRange(const char* name, float value, bool in_range, const char* range) {
  if (in_range && std::isfinite(value)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " must be ", range, ", got ", value));
}

}  // namespace

size_t ModelSpec::num_parameters() const {
  size_t count = 0;
  for (size_t i = 0; i + 1 < layers.size(); ++i) {
    count += KernelSize(layers, i) + static_cast<size_t>(layers[i + 1]);
  }
  return count;
}

std::vector<ParameterSlice> ModelSpec::Slices() const {
  std::vector<ParameterSlice> slices;
  size_t offset = 0;
  const auto add = [&](std::string name, std::vector<int64_t> shape, size_t count) {
    slices.push_back({std::move(name), std::move(shape), offset, count});
    offset += count;
  };
  for (size_t i = 0; i + 1 < layers.size(); ++i) {
    const std::string name = i == 0 ? "dense" : absl::StrCat("dense_", i);
    add(absl::StrCat(name, "/kernel"), {layers[i], layers[i + 1]}, KernelSize(layers, i));
    add(absl::StrCat(name, "/bias"), {layers[i + 1]}, static_cast<size_t>(layers[i + 1]));
  }
  return slices;
}

absl::Status ModelSpec::Validate() const {
  if (layers.size() < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("a model needs at least two widths (inputs and classes), got ", layers.size(),
                     "; for example 784,128,10"));
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i] >= 1 && layers[i] <= kMaxWidth) continue;
    return absl::InvalidArgumentError(absl::StrCat("width ", i, " of the model is ", layers[i],
                                                   "; it must be from 1 to ", kMaxWidth));
  }
  return absl::OkStatus();
}

absl::Status OptimizerSpec::Validate() const {
  absl::Status status =
      CheckRange("the learning rate", learning_rate, learning_rate > 0, "finite and above 0");
  if (kind == Kind::kSgd) return status;
  status.Update(CheckRange("beta1", beta1, beta1 >= 0 && beta1 < 1, "in [0, 1)"));
  status.Update(CheckRange("beta2", beta2, beta2 >= 0 && beta2 < 1, "in [0, 1)"));
  // Zero would divide zero by zero for a parameter that has had no gradient yet.
  status.Update(CheckRange("epsilon", epsilon, epsilon > 0, "finite and above 0"));
  return status;
}

TrainState InitialState(const ModelSpec& model, uint64_t seed) {
  TrainState state;
  state.parameters.resize(model.num_parameters());
  state.first_moment.resize(model.num_parameters());
  state.second_moment.resize(model.num_parameters());
  size_t offset = 0;
  for (size_t i = 0; i + 1 < model.layers.size(); ++i) {
    const double fan_sum = static_cast<double>(model.layers[i]) + model.layers[i + 1];
    const size_t count = KernelSize(model.layers, i);
    FillUniform(seed, static_cast<uint32_t>(i), static_cast<float>(std::sqrt(6 / fan_sum)), count,
                state.parameters.data() + offset);
    offset += count + static_cast<size_t>(model.layers[i + 1]);
  }
  return state;
}

std::string WeightsSha256(const std::vector<float>& parameters) {
  return Sha256Hex(BytesOf(parameters.data(), parameters.size()));
}

std::string StateSha256(const TrainState& state) {
  Sha256 sha256;
  for (const auto* values : {&state.parameters, &state.first_moment, &state.second_moment}) {
    sha256.Update(BytesOf(values->data(), values->size()));
  }
  sha256.Update(BytesOf(&state.step, 1));
  return sha256.FinishHex();
}

}  // namespace ringmaster
