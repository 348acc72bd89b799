// Times training steps of one rank on one GPU, as the trainer runs them: no all-reduce, records
// collected while later steps are in flight.
//
//   step_bench [--backend cuda|cpu] [--epochs N] [--global-batch N] [--layers W,W,...]
//              [--data-dir DIR] [--cuda-libs DIR] [--json FILE]
// Prints a table: us a step and ms an epoch (median, lowest and highest over the epochs after one
// that warms up), and the test accuracy, so that speed is never shown without it. The same numbers
// go to FILE as JSON, for tests/gpu/run to lay beside those of bench/gpu/peers.py.
// Exit code 2: no GPU, or wrong usage.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "common/dataset.h"
#include "common/settings.h"
#include "common/status_macros.h"
#include "kernels/backend.h"
#include "nlohmann/json.hpp"
#include "worker/cuda_loader.h"

namespace ringmaster {
namespace {

using Clock = std::chrono::steady_clock;

constexpr absl::Duration kTimeout = absl::Seconds(60);

struct Arguments {
  std::string backend = "cuda";
  uint32_t epochs = 6;
  uint32_t global_batch = 128;
  std::vector<int> layers = {784, 128, 10};
  std::string data_dir;
  std::string cuda_libs;
  std::string json;
};

struct Result {
  std::string device;
  std::string versions;
  std::vector<double> epoch_seconds;
  uint32_t steps_per_epoch = 0;
  double accuracy = 0;
};

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const Arguments& arguments,
                                                     const BackendOptions& options,
                                                     const Dataset& dataset, Result* result) {
  if (arguments.backend == "cpu") return CreateCpuBackend(options, dataset);
  RM_ASSIGN_OR_RETURN(const CudaModule* module, LoadCudaModule(arguments.cuda_libs));
  RM_RETURN_IF_ERROR(module->devices().status());
  result->versions = module->versions();
  return module->create_backend(options, dataset);
}

absl::StatusOr<Dataset> ReadDataset(const Arguments& arguments) {
  Settings settings;
  settings.data_dir = arguments.data_dir;
  RM_ASSIGN_OR_RETURN(const std::string directory, FindDataDirectory(settings));
  RM_ASSIGN_OR_RETURN(const DatasetFiles files, ReadDatasetFiles(directory));
  return DecodeDataset(files);
}

absl::Status TrainEpoch(Backend& backend, const SamplingPlan& plan, uint32_t epoch) {
  for (uint32_t step = 0; step < plan.steps_per_epoch(); ++step) {
    StepWork work;
    work.epoch = epoch;
    work.slice = plan.Batch(step);
    RM_RETURN_IF_ERROR(backend.ComputeGradient(work));
    RM_RETURN_IF_ERROR(backend.ApplyUpdate());
    RM_RETURN_IF_ERROR(backend.Collect(/*all=*/false, kTimeout).status());
  }
  return backend.Collect(/*all=*/true, kTimeout).status();
}

absl::StatusOr<double> Evaluate(Backend& backend, const Dataset& dataset) {
  RM_RETURN_IF_ERROR(backend.ComputeEvaluation({0, dataset.test.num_samples}));
  RM_RETURN_IF_ERROR(backend.FinishEvaluation());
  RM_ASSIGN_OR_RETURN(const auto records, backend.Collect(/*all=*/true, kTimeout));
  return records.back().record.accuracy();
}

// One epoch to warm up, then from the start again, timed.
absl::StatusOr<Result> Run(const Arguments& arguments) {
  RM_ASSIGN_OR_RETURN(const Dataset dataset, ReadDataset(arguments));
  BackendOptions options;
  options.model.layers = arguments.layers;
  options.plan = {1, dataset.train.num_samples, arguments.global_batch};
  Result result;
  result.steps_per_epoch = options.plan.steps_per_epoch();
  RM_ASSIGN_OR_RETURN(const auto backend, MakeBackend(arguments, options, dataset, &result));
  result.device = backend->description();
  RM_RETURN_IF_ERROR(backend->SetWorld(0, 1));
  RM_RETURN_IF_ERROR(TrainEpoch(*backend, options.plan, 0));
  RM_RETURN_IF_ERROR(backend->SetState(InitialState(options.model, options.plan.seed)));
  for (uint32_t epoch = 0; epoch < arguments.epochs; ++epoch) {
    const Clock::time_point start = Clock::now();
    RM_RETURN_IF_ERROR(TrainEpoch(*backend, options.plan, epoch));
    result.epoch_seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  RM_ASSIGN_OR_RETURN(result.accuracy, Evaluate(*backend, dataset));
  return result;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : 0.5 * (values[half - 1] + values[half]);
}

void Print(const Arguments& arguments, const Result& result) {
  const auto [lowest, highest] =
      std::minmax_element(result.epoch_seconds.begin(), result.epoch_seconds.end());
  const double median = Median(result.epoch_seconds);
  const double steps = result.steps_per_epoch;
  std::printf("%s\n", result.device.c_str());
  if (!result.versions.empty()) std::printf("%s\n", result.versions.c_str());
  std::printf("\n%-10s %6s %12s %22s %12s %9s\n", "backend", "batch", "us a step",
              "lowest..highest", "ms an epoch", "accuracy");
  std::printf("%-10s %6u %12.1f %11.1f..%9.1f %12.2f %8.2f%%\n", arguments.backend.c_str(),
              arguments.global_batch, 1e6 * median / steps, 1e6 * *lowest / steps,
              1e6 * *highest / steps, 1e3 * median, 100 * result.accuracy);
}

bool WriteJson(const Arguments& arguments, const Result& result) {
  if (arguments.json.empty()) return true;
  const double steps = result.steps_per_epoch;
  const nlohmann::json json = {
      {"name", "ringmaster (" + arguments.backend + ")"},
      {"device", result.device},
      {"versions", result.versions},
      {"global_batch", arguments.global_batch},
      {"epoch_seconds", result.epoch_seconds},
      {"us_per_step", 1e6 * Median(result.epoch_seconds) / steps},
      {"accuracy", result.accuracy},
  };
  std::ofstream file(arguments.json);
  file << json.dump(2) << "\n";
  return file.good();
}

}  // namespace
}  // namespace ringmaster

int main(int argc, char** argv) {
  ringmaster::Arguments arguments;
  CLI::App app("Times training steps of one rank on one GPU.");
  app.add_option("--backend", arguments.backend)->check(CLI::IsMember({"cuda", "cpu"}));
  app.add_option("--epochs", arguments.epochs)->check(CLI::PositiveNumber);
  app.add_option("--global-batch", arguments.global_batch)->check(CLI::PositiveNumber);
  app.add_option("--layers", arguments.layers)->delimiter(',');
  app.add_option("--data-dir", arguments.data_dir);
  app.add_option("--cuda-libs", arguments.cuda_libs);
  app.add_option("--json", arguments.json, "file to write the numbers to");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const auto result = ringmaster::Run(arguments);
  if (!result.ok()) {
    std::fprintf(stderr, "step_bench: %s\n", std::string(result.status().message()).c_str());
    return absl::IsUnavailable(result.status()) || absl::IsNotFound(result.status()) ? 2 : 1;
  }
  ringmaster::Print(arguments, *result);
  if (!ringmaster::WriteJson(arguments, *result)) {
    std::fprintf(stderr, "step_bench: cannot write %s\n", arguments.json.c_str());
    return 1;
  }
  return 0;
}
