// Checkpoints that are made up.
#pragma once

#include <cstdint>
#include <string>

#include "common/checkpoint.h"

namespace ringmaster {

// Of four steps and an evaluation an epoch: position 5 is the start of epoch 1.
inline TrainingRecipe SmallRecipe() {
  TrainingRecipe recipe;
  recipe.model = ModelSpec{{5, 3, 2}};
  recipe.seed = 0xFFFFFFFFFFFFFFFF;
  recipe.global_batch = 16;
  recipe.epochs = 6;
  recipe.num_train_samples = 60;
  recipe.num_test_samples = 10;
  recipe.data_digest = "da7a";
  recipe.reproducible = true;
  return recipe;
}

// The state differs with the position in every part.
inline Checkpoint CheckpointAt(uint64_t position, uint64_t generation = 1,
                               const TrainingRecipe& recipe = SmallRecipe()) {
  Checkpoint checkpoint{"run-1", generation, position, recipe, {}, ""};
  TrainState& state = checkpoint.state;
  state.parameters = InitialState(recipe.model, position).parameters;
  state.first_moment = InitialState(recipe.model, position + 1000).parameters;
  state.second_moment = InitialState(recipe.model, position + 2000).parameters;
  state.step = recipe.timeline().UpdatesBefore(position);
  checkpoint.state_digest = StateSha256(state);
  return checkpoint;
}

}  // namespace ringmaster
