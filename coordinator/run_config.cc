#include "coordinator/run_config.h"

#include "absl/strings/str_cat.h"
#include "common/model_choice.h"
#include "common/sampling_plan.h"
#include "common/status_macros.h"

namespace ringmaster {

absl::StatusOr<TrainingConfig> MakeTrainingConfig(const Settings& settings, const Dataset& dataset,
                                                  const std::string& data_digest) {
  RM_ASSIGN_OR_RETURN(const ModelSpec model, ModelFor(settings, dataset));
  RM_RETURN_IF_ERROR(settings.optimizer.Validate());
  if (settings.reproducible && settings.global_batch > kMostReproducibleBatch) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a reproducible run sums exactly up to ", kMostReproducibleBatch, " samples a step, not ",
        settings.global_batch, ": lower --global-batch or leave out --reproducible"));
  }
  TrainingConfig config;
  for (const int width : model.layers) config.add_layers(static_cast<uint32_t>(width));
  const OptimizerSpec& optimizer = settings.optimizer;
  config.set_optimizer(optimizer.kind == OptimizerSpec::Kind::kSgd ? SGD : ADAM);
  config.set_learning_rate(optimizer.learning_rate);
  config.set_beta1(optimizer.beta1);
  config.set_beta2(optimizer.beta2);
  config.set_epsilon(optimizer.epsilon);
  config.set_seed(settings.seed);
  config.set_global_batch(settings.global_batch);
  config.set_epochs(settings.epochs);
  config.set_num_train_samples(dataset.train.num_samples);
  config.set_num_test_samples(dataset.test.num_samples);
  config.set_data_digest(data_digest);
  config.set_reproducible(settings.reproducible);
  return config;
}

ModelSpec ModelOf(const TrainingConfig& config) {
  return ModelSpec{{config.layers().begin(), config.layers().end()}};
}

TrainingRecipe RecipeOf(const TrainingConfig& config) {
  TrainingRecipe recipe;
  recipe.model = ModelOf(config);
  recipe.optimizer.kind =
      config.optimizer() == SGD ? OptimizerSpec::Kind::kSgd : OptimizerSpec::Kind::kAdam;
  recipe.optimizer.learning_rate = config.learning_rate();
  recipe.optimizer.beta1 = config.beta1();
  recipe.optimizer.beta2 = config.beta2();
  recipe.optimizer.epsilon = config.epsilon();
  recipe.seed = config.seed();
  recipe.global_batch = config.global_batch();
  recipe.epochs = config.epochs();
  recipe.num_train_samples = config.num_train_samples();
  recipe.num_test_samples = config.num_test_samples();
  recipe.data_digest = config.data_digest();
  recipe.reproducible = config.reproducible();
  return recipe;
}

}  // namespace ringmaster
