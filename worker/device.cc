#include "worker/device.h"

#include <fstream>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "worker/cuda_loader.h"

namespace ringmaster {
namespace {

std::string Describe(const CudaDevice& gpu) {
  return absl::StrCat(gpu.name, " ", gpu.bus_id, ", compute capability ", gpu.compute_major, ".",
                      gpu.compute_minor);
}

std::string DescribeCpu() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.starts_with("model name")) return "CPU: " + line.substr(line.find(':') + 2);
  }
  return "CPU";
}

// The module and its devices, or why there are none.
absl::StatusOr<std::vector<CudaDevice>> FindGpus(const std::string& cuda_libs,
                                                 const CudaModule** module) {
  RM_ASSIGN_OR_RETURN(*module, LoadCudaModule(cuda_libs));
  return (*module)->devices();
}

}  // namespace

NodeSurvey SurveyNode(const std::string& cuda_libs) {
  NodeSurvey survey;
  survey.cores = UsableCores();
  const CudaModule* module = nullptr;
  const auto gpus = FindGpus(cuda_libs, &module);
  if (module != nullptr) survey.cuda_versions = module->versions();
  if (!gpus.ok()) {
    survey.why_no_gpu = std::string(gpus.status().message());
    return survey;
  }
  for (const CudaDevice& gpu : *gpus) survey.gpus.push_back(Describe(gpu));
  return survey;
}

absl::StatusOr<Device> ChooseDevice(const Settings& settings) {
  Device device;
  device.ordinal = settings.local_rank;
  device.threads = ThreadsPerProcess(settings.threads, UsableCores(), settings.local_world_size);
  device.description = DescribeCpu();
  if (settings.backend == BackendChoice::kCpu) return device;
  const CudaModule* module = nullptr;
  const auto gpus = FindGpus(settings.cuda_libs, &module);
  std::string why_not;
  if (!gpus.ok()) {
    why_not = std::string(gpus.status().message());
  } else if (device.ordinal >= static_cast<int>(gpus->size())) {
    why_not = absl::StrCat("process ", device.ordinal,
                           " of this node has no GPU of its own: there "
                           "are ",
                           gpus->size());
  } else {
    device.cuda = module;
    device.description = Describe((*gpus)[device.ordinal]);
    return device;
  }
  if (settings.backend == BackendChoice::kCuda) {
    return absl::InvalidArgumentError(
        absl::StrCat("--backend cuda: ", why_not, ". Pass --backend cpu to compute on the CPU"));
  }
  spdlog::info("computing on the CPU, because {}", why_not);
  return device;
}

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const Device& device, BackendOptions options,
                                                     const Dataset& dataset) {
  options.device = device.ordinal;
  options.threads = device.threads;
  if (device.cuda != nullptr) return device.cuda->create_backend(options, dataset);
  return CreateCpuBackend(options, dataset);
}

}  // namespace ringmaster
