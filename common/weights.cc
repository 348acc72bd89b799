#include "common/weights.h"

#include <algorithm>
#include <map>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/checkpoint.h"
#include "common/file.h"
#include "common/safetensors.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

// Tensors of this name are no weights (common/checkpoint.h).
constexpr char kOptimizerPrefix[] = "optimizer/";

using TensorsByName = std::map<std::string, Tensor>;

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::Status Bad(const std::string& path, const std::string& what) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": ", what,
                   ". Wanted the weights of a multilayer perceptron with Keras's names: "
                   "dense/kernel [inputs, width], dense/bias [width], dense_1/kernel ..."));
}

// The widths, from the shapes of dense/kernel, dense_1/kernel and so on. What else there is, is
// checked against the model they make.
absl::StatusOr<ModelSpec> ModelOf(const TensorsByName& tensors, const std::string& path) {
  ModelSpec model;
  model.layers.clear();
  for (int layer = 0;; ++layer) {
    const std::string name = layer == 0 ? "dense/kernel" : absl::StrCat("dense_", layer, "/kernel");
    const auto kernel = tensors.find(name);
    if (kernel == tensors.end()) break;
    const std::vector<int64_t>& shape = kernel->second.shape;
    if (shape.size() != 2 || std::max(shape[0], shape[1]) > ModelSpec::kMaxWidth) {
      return Bad(path, absl::StrCat(name, " has the shape ", ShapeText(shape)));
    }
    if (layer == 0) model.layers.push_back(static_cast<int>(shape[0]));
    model.layers.push_back(static_cast<int>(shape[1]));
  }
  if (model.layers.empty()) return Bad(path, "there is no dense/kernel");
  const absl::Status status = model.Validate();
  if (!status.ok()) return Bad(path, std::string(status.message()));
  return model;
}

absl::StatusOr<Weights> Assemble(const TensorsByName& tensors, const std::string& path) {
  Weights weights;
  RM_ASSIGN_OR_RETURN(weights.model, ModelOf(tensors, path));
  const std::vector<ParameterSlice> slices = weights.model.Slices();
  for (const ParameterSlice& slice : slices) {
    const auto found = tensors.find(slice.name);
    if (found == tensors.end()) return Bad(path, absl::StrCat("there is no ", slice.name));
    const Tensor& tensor = found->second;
    if (tensor.shape != slice.shape) {
      return Bad(path, absl::StrCat(slice.name, " has the shape ", ShapeText(tensor.shape),
                                    ", but the layers beside it want ", ShapeText(slice.shape)));
    }
    weights.parameters.insert(weights.parameters.end(), tensor.values.begin(), tensor.values.end());
  }
  for (const auto& [name, tensor] : tensors) {
    if (std::none_of(slices.begin(), slices.end(),
                     [&, &name = name](const ParameterSlice& s) { return s.name == name; })) {
      return Bad(path, absl::StrCat("there is no place for ", name));
    }
  }
  return weights;
}

absl::StatusOr<Weights> WeightsOfCheckpoint(const std::string& path) {
  RM_ASSIGN_OR_RETURN(Checkpoint checkpoint, LoadCheckpoint(path));
  return Weights{std::move(checkpoint.recipe.model), std::move(checkpoint.state.parameters)};
}

}  // namespace

absl::Status SaveWeights(const std::string& path, const ModelSpec& model,
                         const std::vector<float>& parameters) {
  RM_RETURN_IF_ERROR(model.Validate());
  if (parameters.size() != model.num_parameters()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot write ", path, ": got ", parameters.size(),
                     " parameters, but the model has ", model.num_parameters()));
  }
  std::vector<TensorView> tensors;
  for (const ParameterSlice& slice : model.Slices()) {
    tensors.push_back(
        {slice.name, slice.shape, std::span(parameters).subspan(slice.offset, slice.count)});
  }
  return WriteFileAtomically(path, EncodeSafetensors(tensors));
}

absl::StatusOr<Weights> LoadWeights(const std::string& path) {
  RM_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  auto file = DecodeSafetensors(bytes);
  if (!file.ok()) return Bad(path, std::string(file.status().message()));
  if (ClaimsToBeCheckpoint(file->metadata)) return WeightsOfCheckpoint(path);
  TensorsByName tensors;
  for (Tensor& tensor : file->tensors) {
    std::string name = tensor.name;
    if (!name.starts_with(kOptimizerPrefix)) tensors.emplace(std::move(name), std::move(tensor));
  }
  return Assemble(tensors, path);
}

}  // namespace ringmaster
