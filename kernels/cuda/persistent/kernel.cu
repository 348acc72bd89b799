// Instantiates and launches the persistent kernel.
#include "kernels/cuda/persistent/kernel.cuh"

namespace ringmaster::persistent {
namespace {

using Kernel = void (*)(KernelArguments);

struct Compiled {
  Kernel kernel = nullptr;
  size_t shared_bytes = 0;
};

template <int kBlocks, int kTerms, bool kNormal, bool kMulticast>
Compiled Choose(bool profile) {
  static_assert(sizeof(Shared<kBlocks>) <= 232448, "does not fit the shared memory of a block");
  return {profile ? &TrainingKernel<kBlocks, kTerms, kNormal, kMulticast, true>
                  : &TrainingKernel<kBlocks, kTerms, kNormal, kMulticast, false>,
          sizeof(Shared<kBlocks>)};
}

Compiled Find(const Variant& v) {
  if (v.blocks == 8 && v.terms == 2 && !v.normal && v.multicast) {
    return Choose<8, 2, false, true>(v.profile);
  }
  if (v.blocks != 16) return {};
  if (v.terms == 1 && !v.normal && v.multicast) return Choose<16, 1, false, true>(v.profile);
  if (v.terms != 2) return {};
  if (v.normal && v.multicast) return Choose<16, 2, true, true>(v.profile);
  if (!v.normal && v.multicast) return Choose<16, 2, false, true>(v.profile);
  if (!v.normal && !v.multicast) return Choose<16, 2, false, false>(v.profile);
  return {};
}

// The launch configuration of one cluster. `attribute` is storage that it points to.
cudaError_t Configure(const Compiled& compiled, const Variant& variant,
                      cudaLaunchAttribute* attribute, cudaLaunchConfig_t* config) {
  if (compiled.kernel == nullptr) return cudaErrorInvalidValue;
  if (const cudaError_t error =
          cudaFuncSetAttribute(compiled.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(compiled.shared_bytes));
      error != cudaSuccess) {
    return error;
  }
  if (variant.blocks > 8) {
    if (const cudaError_t error = cudaFuncSetAttribute(
            compiled.kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
        error != cudaSuccess) {
      return error;
    }
  }
  attribute->id = cudaLaunchAttributeClusterDimension;
  attribute->val.clusterDim.x = static_cast<unsigned>(variant.blocks);
  attribute->val.clusterDim.y = 1;
  attribute->val.clusterDim.z = 1;
  *config = {};
  config->gridDim = dim3(static_cast<unsigned>(variant.blocks));
  config->blockDim = dim3(kThreads);
  config->dynamicSmemBytes = compiled.shared_bytes;
  config->attrs = attribute;
  config->numAttrs = 1;
  return cudaSuccess;
}

}  // namespace

cudaError_t LaunchTraining(const KernelArguments& arguments, Variant variant, cudaStream_t stream) {
  const Compiled compiled = Find(variant);
  cudaLaunchAttribute attribute;
  cudaLaunchConfig_t config;
  if (const cudaError_t error = Configure(compiled, variant, &attribute, &config);
      error != cudaSuccess) {
    return error;
  }
  config.stream = stream;
  return cudaLaunchKernelEx(&config, compiled.kernel, arguments);
}

cudaError_t MaxActiveClusters(Variant variant, int* clusters) {
  *clusters = 0;
  const Compiled compiled = Find(variant);
  cudaLaunchAttribute attribute;
  cudaLaunchConfig_t config;
  if (const cudaError_t error = Configure(compiled, variant, &attribute, &config);
      error != cudaSuccess) {
    return error;
  }
  return cudaOccupancyMaxActiveClusters(clusters, compiled.kernel, &config);
}

}  // namespace ringmaster::persistent
