// What a process computes on.
//
// Thread safety: plain functions and values.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/node_layout.h"
#include "common/settings.h"
#include "kernels/backend.h"
#include "worker/cuda_module.h"

namespace ringmaster {

struct Device {
  const CudaModule* cuda = nullptr;  // null: the CPU
  int ordinal = 0;                   // of the GPU
  int threads = 1;                   // on CPU
  std::string description;           // for people
};

// What this node has. Opens the CUDA module if there is one.
NodeSurvey SurveyNode(const std::string& cuda_libs);

// The device of process `local_rank`, by settings.backend. Auto takes the GPU if there is one for
// this process, and logs what was chosen and why. INVALID_ARGUMENT: CUDA was asked for and cannot
// be used, with the reason.
absl::StatusOr<Device> ChooseDevice(const Settings& settings);

// A backend on `device`. Codes: those of CreateCpuBackend and CudaModule::create_backend.
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const Device& device, BackendOptions options,
                                                     const Dataset& dataset);

}  // namespace ringmaster
