// A module for the loader's tests: it has the interface of libringmaster_cuda.so and no GPU.
#include "worker/cuda_module.h"

namespace ringmaster {
namespace {

std::string Versions() { return "fake"; }

absl::StatusOr<std::vector<CudaDevice>> Devices() {
  return absl::UnavailableError("the fake module has no GPU");
}

constexpr CudaModule kModule = {RINGMASTER_FAKE_ABI, Versions, Devices, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace ringmaster

extern "C" const ringmaster::CudaModule* RINGMASTER_FAKE_SYMBOL() { return &ringmaster::kModule; }
