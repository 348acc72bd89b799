// Chooses the vector kernels that this CPU can run.
//
// Thread safety: safe from any thread.
#pragma once

#include <vector>

#include "kernels/cpu/exact_kernels.h"
#include "kernels/cpu/vector_kernels.h"

namespace ringmaster {

// Those compiled in that this CPU and its operating system support, best first; the portable one
// is always there, last.
std::vector<const VectorKernels*> AvailableVectorKernels();
std::vector<const ExactKernels*> AvailableExactKernels();

}  // namespace ringmaster
