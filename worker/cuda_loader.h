// Finds and opens libringmaster_cuda.so and the NVIDIA libraries it needs.
//
// Searched in this order: beside this program (and ../lib), `cuda_libs`, the dynamic linker's own
// paths, the CUDA toolkit (CUDA_HOME, /usr/local/cuda), the Python wheels
// (site-packages/nvidia/*/lib). Thread safety: safe from several threads; the module stays open.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/cuda_module.h"

namespace ringmaster {

// `cuda_libs`: directories, separated by colons; may be empty. NOT_FOUND: there is no module here.
// UNAVAILABLE: it does not load, with the linker's reason and the library that is missing.
// FAILED_PRECONDITION: it is of another version.
absl::StatusOr<const CudaModule*> LoadCudaModule(const std::string& cuda_libs);

// The directories LoadCudaModule() searches; an empty one stands for the linker's own paths.
std::vector<std::string> CudaSearchPath(const std::string& cuda_libs);
// LoadCudaModule() over directories of the caller's choice: for tests.
absl::StatusOr<const CudaModule*> LoadCudaModuleFrom(const std::vector<std::string>& directories);

}  // namespace ringmaster
