// The CPU backend with its choices made by the caller: for tests and benchmarks. Everyone else
// calls CreateCpuBackend(options, dataset) of kernels/backend.h.
//
// Thread safety and ownership: as Backend.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "common/dataset.h"
#include "kernels/backend.h"
#include "kernels/cpu/exact_kernels.h"
#include "kernels/cpu/vector_kernels.h"

namespace ringmaster {

struct CpuTuning {
  enum class Input { kAuto, kDense, kSparse };

  // Null: the best that this CPU can run.
  const VectorKernels* kernels = nullptr;
  // kAuto: sparse where at most kSparseDensity of the training pixels are not zero. A first layer
  // whose width is not a multiple of 16 is dense in any case.
  Input input = Input::kAuto;
  // The same for a reproducible backend, which has nothing else to choose.
  const ExactKernels* exact_kernels = nullptr;
};

inline constexpr double kSparseDensity = 0.4;

// As CreateCpuBackend.
absl::StatusOr<std::unique_ptr<Backend>> CreateTunedCpuBackend(const BackendOptions& options,
                                                               const Dataset& dataset,
                                                               const CpuTuning& tuning);

}  // namespace ringmaster
