#include "worker/cuda_module.h"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/matrix.h"
#include "worker/nccl_communicator.h"

namespace ringmaster {
namespace {

std::string VersionText(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

std::string Versions() {
  int runtime = 0;
  static_cast<void>(cudaRuntimeGetVersion(&runtime));
  return absl::StrCat("CUDA ", VersionText(runtime), ", ", CudaMatrix::Version(), ", ",
                      NcclCommunicator::Version());
}

absl::Status NoDevices(cudaError_t error) {
  int runtime = 0;
  int driver = 0;  // 0: there is none
  static_cast<void>(cudaRuntimeGetVersion(&runtime));
  static_cast<void>(cudaDriverGetVersion(&driver));
  const std::string wanted = VersionText(runtime);
  if (driver == 0) {
    return absl::UnavailableError(
        "there is no NVIDIA driver on this machine (or in this "
        "container)");
  }
  if (error == cudaErrorInsufficientDriver) {
    return absl::UnavailableError(absl::StrCat("the NVIDIA driver is too old: it is for CUDA ",
                                               VersionText(driver), ", wanted ", wanted));
  }
  if (error == cudaSuccess || error == cudaErrorNoDevice) {
    return absl::UnavailableError(
        "the NVIDIA driver shows this process no GPU (is CUDA_VISIBLE_DEVICES empty?)");
  }
  return absl::UnavailableError(
      absl::StrCat("the NVIDIA driver does not start: ", cudaGetErrorString(error)));
}

absl::StatusOr<CudaDevice> Describe(int ordinal) {
  cudaDeviceProp properties;
  RM_CUDA_RETURN_IF_ERROR(cudaGetDeviceProperties(&properties, ordinal));
  char bus_id[32] = {};
  RM_CUDA_RETURN_IF_ERROR(cudaDeviceGetPCIBusId(bus_id, sizeof(bus_id), ordinal));
  CudaDevice device;
  device.name = properties.name;
  device.bus_id = bus_id;
  device.compute_major = properties.major;
  device.compute_minor = properties.minor;
  device.memory_bytes = properties.totalGlobalMem;
  return device;
}

absl::StatusOr<std::vector<CudaDevice>> Devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) return NoDevices(error);
  std::vector<CudaDevice> devices;
  for (int i = 0; i < count; ++i) {
    auto device = Describe(i);
    if (!device.ok()) return absl::UnavailableError(device.status().message());
    devices.push_back(*std::move(device));
  }
  return devices;
}

absl::StatusOr<std::unique_ptr<Communicator>> CreateNcclCommunicator(const NcclOptions& options) {
  return NcclCommunicator::Create(options);
}

// NCCL reads its environment once, at its first use. What the user has set stays.
void SetNcclDefaults() {
  // A dead peer is given up after 5.5 seconds and not after a minute.
  setenv("NCCL_SOCKET_RETRY_CNT", "10", /*overwrite=*/0);
  // No listener on a fixed port.
  setenv("NCCL_RAS_ENABLE", "0", /*overwrite=*/0);
}

constexpr CudaModule kModule = {
    kCudaModuleAbi,        Versions, Devices, CreateCudaBackend, NcclCommunicator::CreateUniqueId,
    CreateNcclCommunicator};

}  // namespace
}  // namespace ringmaster

extern "C" __attribute__((visibility("default"))) const ringmaster::CudaModule*
ringmaster_cuda_module() {
  static const bool initialized = [] {
    ringmaster::SetNcclDefaults();
    return true;
  }();
  static_cast<void>(initialized);
  return &ringmaster::kModule;
}
