#include "coordinator/run_config.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Dataset MnistShape() {
  Dataset dataset;
  dataset.train.num_samples = 60000;
  dataset.test.num_samples = 10000;
  dataset.rows = 28;
  dataset.columns = 28;
  dataset.num_classes = 10;
  return dataset;
}

TEST(RunConfigTest, Defaults) {
  const auto config = MakeTrainingConfig(Settings{}, MnistShape(), "abc");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->layers(), ElementsAre(784, 128, 10));
  EXPECT_EQ(config->optimizer(), ADAM);
  EXPECT_EQ(config->learning_rate(), 1e-3f);
  EXPECT_EQ(config->epsilon(), 1e-7f);
  EXPECT_EQ(config->seed(), 1u);
  EXPECT_EQ(config->global_batch(), 128u);
  EXPECT_EQ(config->epochs(), 6u);
  EXPECT_EQ(config->num_train_samples(), 60000u);
  EXPECT_EQ(config->num_test_samples(), 10000u);
  EXPECT_EQ(config->data_digest(), "abc");
  EXPECT_FALSE(config->reproducible());
  EXPECT_EQ(ModelOf(*config), ModelSpec{});
}

TEST(RunConfigTest, RecipeHasItAll) {
  const TrainingRecipe recipe = {
      .model = ModelSpec{{784, 12, 10}},
      .optimizer = {.kind = OptimizerSpec::Kind::kSgd, .learning_rate = 0.5f},
      .seed = 7,
      .global_batch = 64,
      .epochs = 3,
      .num_train_samples = 60000,
      .num_test_samples = 10000,
      .data_digest = "abc",
      .reproducible = true};
  Settings settings;
  settings.layers = recipe.model.layers;
  settings.optimizer = recipe.optimizer;
  settings.seed = recipe.seed;
  settings.global_batch = recipe.global_batch;
  settings.epochs = recipe.epochs;
  auto config = MakeTrainingConfig(settings, MnistShape(), "abc");
  ASSERT_TRUE(config.ok()) << config.status();
  config->set_reproducible(true);
  EXPECT_EQ(RecipeOf(*config), recipe);
}

TEST(RunConfigTest, ModelFollowsTheDataSet) {
  Dataset dataset = MnistShape();
  dataset.rows = 8;
  dataset.columns = 7;
  dataset.num_classes = 3;
  const auto config = MakeTrainingConfig(Settings{}, dataset, "abc");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->layers(), ElementsAre(56, 128, 3));
}

TEST(RunConfigTest, LayersAsGivenWhereTheyFit) {
  Settings settings;
  settings.layers = {784, 512, 256, 12};
  settings.optimizer.kind = OptimizerSpec::Kind::kSgd;
  const auto config = MakeTrainingConfig(settings, MnistShape(), "abc");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->layers(), ElementsAre(784, 512, 256, 12));
  EXPECT_EQ(config->optimizer(), SGD);
  for (const std::vector<int>& wrong : {std::vector<int>{783, 10}, std::vector<int>{784, 9}}) {
    settings.layers = wrong;
    const absl::Status status = MakeTrainingConfig(settings, MnistShape(), "abc").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("does not fit the data set"));
  }
}

TEST(RunConfigTest, ReproducibleRunsSayTheyAre) {
  Settings settings;
  settings.reproducible = true;
  const auto config = MakeTrainingConfig(settings, MnistShape(), "abc");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->reproducible());

  // What cannot be summed exactly is refused before anything starts.
  settings.global_batch = 65'520;
  EXPECT_TRUE(MakeTrainingConfig(settings, MnistShape(), "abc").ok());
  settings.global_batch = 65'521;
  const absl::Status refused = MakeTrainingConfig(settings, MnistShape(), "abc").status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("lower --global-batch"));
  settings.reproducible = false;
  EXPECT_TRUE(MakeTrainingConfig(settings, MnistShape(), "abc").ok());
}

}  // namespace
}  // namespace ringmaster
