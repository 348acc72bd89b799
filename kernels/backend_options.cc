#include "kernels/backend_options.h"

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "kernels/exact.h"

namespace ringmaster {
namespace {

absl::Status CheckSplit(const char* name, const DatasetSplit& split, size_t pixels) {
  if (split.labels.size() == split.num_samples &&
      split.images.size() == split.num_samples * pixels) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrFormat(
      "the %s split has %d labels and %d bytes of images for %d samples of %d pixels", name,
      split.labels.size(), split.images.size(), split.num_samples, pixels));
}

// The largest label is below num_classes, and a label is a byte.
absl::Status CheckModel(const ModelSpec& model, const Dataset& dataset) {
  RM_RETURN_IF_ERROR(model.Validate());
  if (model.inputs() != dataset.pixels()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "the model has %d inputs but the images have %d x %d = %d pixels; start --layers with %d",
        model.inputs(), dataset.rows, dataset.columns, dataset.pixels(), dataset.pixels()));
  }
  if (model.classes() < dataset.num_classes || model.classes() > 256) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "the model has %d outputs but the data set has %d classes; end --layers with %d (a label "
        "is a byte: at most 256)",
        model.classes(), dataset.num_classes, dataset.num_classes));
  }
  return absl::OkStatus();
}

absl::Status CheckReproducible(const BackendOptions& options) {
  if (!options.reproducible) return absl::OkStatus();
  if (options.plan.granularity % kMicroShard != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a reproducible backend wants slices of whole micro-shards of %d samples, "
                        "the sampling plan cuts them in units of %d",
                        kMicroShard, options.plan.granularity));
  }
  const uint32_t batch = options.plan.Batch(0).count;
  if (batch > kMostReproducibleBatch) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a reproducible run sums gradients as integers, which is exact for global "
                        "batches of up to %d samples, not for %d: lower --global-batch or leave "
                        "out --reproducible",
                        kMostReproducibleBatch, batch));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckBackendOptions(const BackendOptions& options, const Dataset& dataset) {
  RM_RETURN_IF_ERROR(CheckModel(options.model, dataset));
  RM_RETURN_IF_ERROR(options.optimizer.Validate());
  RM_RETURN_IF_ERROR(CheckSplit("training", dataset.train, dataset.pixels()));
  RM_RETURN_IF_ERROR(CheckSplit("test", dataset.test, dataset.pixels()));
  if (options.plan.num_samples != dataset.train.num_samples || options.plan.global_batch < 1) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "the sampling plan has %d samples in global batches of %d, the training split %d samples; "
        "wanted the same number and batches of at least 1",
        options.plan.num_samples, options.plan.global_batch, dataset.train.num_samples));
  }
  RM_RETURN_IF_ERROR(CheckReproducible(options));
  if (options.threads < 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d CPU threads, wanted at least 1", options.threads));
  }
  return absl::OkStatus();
}

absl::Status OutOfRangeError(const std::string& place) {
  return absl::OutOfRangeError(absl::StrFormat(
      "%s: a gradient of %d samples is not a number, or not below %g in magnitude: --reproducible "
      "cannot sum it exactly. The step was not applied on any rank. Training has most likely "
      "diverged: lower --learning-rate, or leave out --reproducible to see it go on",
      place, kMicroShard, exact::kGradientLimit));
}

}  // namespace ringmaster
