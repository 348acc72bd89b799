#include "common/model_choice.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"

namespace ringmaster {

absl::StatusOr<ModelSpec> ModelFor(const Settings& settings, const Dataset& dataset) {
  ModelSpec model{settings.layers};
  if (model.layers.empty()) model.layers = {dataset.pixels(), 128, dataset.num_classes};
  if (model.inputs() != dataset.pixels() || model.classes() < dataset.num_classes) {
    return absl::InvalidArgumentError(
        absl::StrCat("--layers ", absl::StrJoin(model.layers, ","),
                     " does not fit the data set: its images have ", dataset.pixels(),
                     " pixels (the first width) and there are ", dataset.num_classes,
                     " classes (the last width)"));
  }
  RM_RETURN_IF_ERROR(model.Validate());
  return model;
}

}  // namespace ringmaster
