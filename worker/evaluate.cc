#include "worker/evaluate.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/dataset.h"
#include "common/logging.h"
#include "common/node_layout.h"
#include "common/status_macros.h"
#include "common/weights.h"
#include "worker/device.h"

namespace ringmaster {
namespace {

// Any plan will do: the test split is read in file order.
constexpr uint32_t kUnusedBatch = 128;
constexpr absl::Duration kTimeout = absl::Seconds(120);

struct Evaluation {
  std::string backend;
  double loss = 0;
  uint64_t correct = 0;
  uint32_t samples = 0;
  ConfusionMatrix confusion;
  int classes = 0;
};

absl::Status CheckFit(const ModelSpec& model, const Dataset& dataset, const std::string& path) {
  if (model.inputs() == dataset.pixels() && model.classes() >= dataset.num_classes) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(path, " has ", model.inputs(), " inputs and ", model.classes(),
                   " classes, but the data set has ", dataset.pixels(), " pixels (", dataset.rows,
                   " x ", dataset.columns, ") and ", dataset.num_classes,
                   " classes. Pass the --data-dir that the network was trained on"));
}

absl::StatusOr<std::unique_ptr<Backend>> PrepareBackend(const Settings& settings,
                                                        const ModelSpec& model,
                                                        std::vector<float> parameters,
                                                        const Dataset& dataset) {
  RM_ASSIGN_OR_RETURN(const Device device, ChooseDevice(settings));
  BackendOptions options;
  options.model = model;
  options.plan = {0, dataset.train.num_samples, kUnusedBatch};
  RM_ASSIGN_OR_RETURN(auto backend, MakeBackend(device, options, dataset));
  RM_RETURN_IF_ERROR(backend->SetWorld(0, 1));
  TrainState state;
  state.first_moment.resize(parameters.size());
  state.second_moment.resize(parameters.size());
  state.parameters = std::move(parameters);
  RM_RETURN_IF_ERROR(backend->SetState(state));
  return backend;
}

absl::StatusOr<Evaluation> Evaluate(const Settings& settings) {
  RM_ASSIGN_OR_RETURN(Weights weights, LoadWeights(settings.weights));
  RM_ASSIGN_OR_RETURN(const std::string directory, FindDataDirectory(settings));
  RM_ASSIGN_OR_RETURN(const DatasetFiles files, ReadDatasetFiles(directory));
  RM_ASSIGN_OR_RETURN(const Dataset dataset, DecodeDataset(files));
  RM_RETURN_IF_ERROR(CheckFit(weights.model, dataset, settings.weights));
  RM_ASSIGN_OR_RETURN(auto backend, PrepareBackend(settings, weights.model,
                                                   std::move(weights.parameters), dataset));
  const PositionRange all{0, dataset.test.num_samples};
  RM_RETURN_IF_ERROR(backend->ComputeEvaluation(all));
  RM_RETURN_IF_ERROR(backend->FinishEvaluation());
  RM_ASSIGN_OR_RETURN(const auto records, backend->Collect(/*all=*/true, kTimeout));
  if (records.size() != 1) return absl::InternalError("the backend returned no evaluation");
  RM_ASSIGN_OR_RETURN(const auto predictions, backend->Predict(Split::kTest, all));
  const StepRecord& record = records[0].record;
  Evaluation result;
  result.backend = backend->description();
  result.samples = dataset.test.num_samples;
  result.loss = static_cast<double>(record.loss_sum_quanta) * tail::kLossQuantum / result.samples;
  result.correct = record.correct;
  result.classes = weights.model.classes();
  result.confusion = CountConfusion(dataset.test.labels, predictions, result.classes);
  return result;
}

// "97.1", or "-" where there is nothing to divide by.
std::string Percent(uint64_t part, uint64_t whole) {
  if (whole == 0) return "-";
  return absl::StrFormat("%.1f", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

}  // namespace

ConfusionMatrix CountConfusion(const std::vector<uint8_t>& labels,
                               const std::vector<uint8_t>& predictions, int classes) {
  ConfusionMatrix matrix(static_cast<size_t>(classes) * classes);
  for (size_t i = 0; i < labels.size(); ++i) {
    ++matrix[static_cast<size_t>(labels[i]) * classes + predictions[i]];
  }
  return matrix;
}

std::string FormatConfusion(const ConfusionMatrix& matrix, int classes) {
  const uint64_t largest = *std::max_element(matrix.begin(), matrix.end());
  const int width = std::max<int>(static_cast<int>(absl::StrCat(largest).size()), 5) + 1;
  std::string text = absl::StrFormat("%8s", "true\\as");
  for (int column = 0; column < classes; ++column)
    absl::StrAppendFormat(&text, "%*d", width, column);
  absl::StrAppendFormat(&text, "%*s\n", width + 4, "recall %");
  std::vector<uint64_t> predicted(classes);
  for (int row = 0; row < classes; ++row) {
    uint64_t total = 0;
    absl::StrAppendFormat(&text, "%8d", row);
    for (int column = 0; column < classes; ++column) {
      const uint64_t count = matrix[static_cast<size_t>(row) * classes + column];
      absl::StrAppendFormat(&text, "%*d", width, count);
      total += count;
      predicted[column] += count;
    }
    const uint64_t right = matrix[static_cast<size_t>(row) * classes + row];
    absl::StrAppendFormat(&text, "%*s\n", width + 4, Percent(right, total));
  }
  absl::StrAppendFormat(&text, "%8s", "prec. %");
  for (int column = 0; column < classes; ++column) {
    const uint64_t right = matrix[static_cast<size_t>(column) * classes + column];
    absl::StrAppendFormat(&text, "%*s", width, Percent(right, predicted[column]));
  }
  return text + "\n";
}

int RunEvaluate(const Settings& settings) {
  absl::StatusOr<Evaluation> result = absl::InvalidArgumentError(
      "which weights? Pass a safetensors file, as runs/latest/weights.safetensors");
  if (!settings.weights.empty()) result = Evaluate(settings);
  if (!result.ok()) {
    LogError(result.status());
    return absl::IsInternal(result.status()) ? 1 : 2;
  }
  std::printf("%s",
              absl::StrFormat("weights   %s\nbackend   %s\nsamples   %d\nloss      %.4f\naccuracy  "
                              "%.2f %% (%d of %d)\n\n%s",
                              settings.weights, result->backend, result->samples, result->loss,
                              100.0 * static_cast<double>(result->correct) / result->samples,
                              result->correct, result->samples,
                              FormatConfusion(result->confusion, result->classes))
                  .c_str());
  return 0;
}

}  // namespace ringmaster
