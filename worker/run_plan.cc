#include "worker/run_plan.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

absl::StatusOr<OptimizerSpec> OptimizerOf(const TrainingConfig& config) {
  OptimizerSpec optimizer;
  switch (config.optimizer()) {
    case ADAM:
      optimizer.kind = OptimizerSpec::Kind::kAdam;
      break;
    case SGD:
      optimizer.kind = OptimizerSpec::Kind::kSgd;
      break;
    default:
      return absl::UnimplementedError(absl::StrCat("this worker does not know the optimizer ",
                                                   static_cast<int>(config.optimizer())));
  }
  optimizer.learning_rate = config.learning_rate();
  optimizer.beta1 = config.beta1();
  optimizer.beta2 = config.beta2();
  optimizer.epsilon = config.epsilon();
  return optimizer;
}

}  // namespace

absl::StatusOr<RunPlan> PlanFrom(const TrainingConfig& config) {
  RunPlan plan;
  plan.model = ModelSpec{{config.layers().begin(), config.layers().end()}};
  RM_ASSIGN_OR_RETURN(plan.optimizer, OptimizerOf(config));
  plan.sampling = {config.seed(), config.num_train_samples(), config.global_batch(),
                   SliceGranularity(config.reproducible())};
  plan.reproducible = config.reproducible();
  plan.epochs = config.epochs();
  plan.num_test_samples = config.num_test_samples();
  return plan;
}

absl::Status CheckDataset(const TrainingConfig& config, const Dataset& dataset,
                          const std::string& digest) {
  if (config.data_digest() == digest && config.num_train_samples() == dataset.train.num_samples &&
      config.num_test_samples() == dataset.test.num_samples) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "the run trains on data set ", config.data_digest(), " (", config.num_train_samples(), " + ",
      config.num_test_samples(), " samples), this process has ", digest, " (",
      dataset.train.num_samples, " + ", dataset.test.num_samples, ")"));
}

}  // namespace ringmaster
