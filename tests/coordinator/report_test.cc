#include "coordinator/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "coordinator/run_history.h"
#include "nlohmann/json.hpp"
#include "tests/coordinator/records.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

RunHistory TwoEpochs() {
  RunHistory history;
  history.Add(TrainingStep(0, 0, {.loss_sum = 4, .correct = 1, .samples = 2}));
  history.Add(TrainingStep(0, 1, {.loss_sum = 5, .samples = 1, .epoch_seconds = 0.25}));
  history.Add(Evaluation(0, {.loss_sum = 3, .correct = 1, .samples = 4}));
  history.Add(TrainingStep(1, 0, {.loss_sum = 1, .correct = 2, .samples = 2}));
  history.Add(
      TrainingStep(1, 1, {.loss_sum = 0.5, .correct = 1, .samples = 1, .epoch_seconds = 0.75}));
  history.Add(Evaluation(1, {.loss_sum = 1, .correct = 3, .samples = 4}));
  return history;
}

TEST(RunHistoryTest, BeforeTheFirstRecord) {
  const RunHistory history;
  EXPECT_THAT(history.epochs(), SizeIs(0));
  EXPECT_EQ(history.last_evaluated(), nullptr);
  EXPECT_EQ(history.samples_per_second(), 0);
}

TEST(RunHistoryTest, AnUnfinishedEpoch) {
  RunHistory history;
  history.Add(TrainingStep(0, 0, {.loss_sum = 4, .correct = 1, .samples = 2}));
  ASSERT_THAT(history.epochs(), SizeIs(1));
  EXPECT_EQ(history.epochs()[0].steps, 1u);
  EXPECT_EQ(history.epochs()[0].loss, 2);
  EXPECT_EQ(history.epochs()[0].accuracy, 0.5);
  EXPECT_EQ(history.epochs()[0].seconds, 0);
  EXPECT_FALSE(history.epochs()[0].evaluated);
  EXPECT_EQ(history.last_evaluated(), nullptr);
  EXPECT_EQ(history.samples_per_second(), 0);
}

// Means over samples, not over batches.
TEST(RunHistoryTest, TwoEpochs) {
  const RunHistory history = TwoEpochs();
  ASSERT_THAT(history.epochs(), SizeIs(2));
  EXPECT_EQ(history.epochs()[0].loss, 3);
  EXPECT_EQ(history.epochs()[0].accuracy, 1.0 / 3);
  EXPECT_EQ(history.epochs()[0].val_loss, 0.75);
  EXPECT_EQ(history.epochs()[1].loss, 0.5);
  EXPECT_EQ(history.last_evaluated(), &history.epochs()[1]);
  EXPECT_EQ(history.steps(), 4u);
  EXPECT_EQ(history.samples(), 6u);
  EXPECT_EQ(history.samples_per_second(), 6);
}

TEST(RunHistoryTest, ARecordWithoutSamples) {
  EXPECT_EQ(MeanLoss(GlobalRecord()), 0);
  EXPECT_EQ(Accuracy(GlobalRecord()), 0);
}

class ReportTest : public ::testing::Test {
 protected:
  ReportTest() {
    report_.outcome = RunOutcome::kSuccess;
    report_.run_id = "run";
    report_.run_dir = "runs/x";
    report_.version = "0.1.0";
    report_.started = absl::FromUnixMillis(1700000000250);
    report_.ended = report_.started + absl::Milliseconds(1500);
    report_.config = SmallConfig();
    report_.world_size = 2;
    report_.generations = 1;
    report_.device = CPU;
    report_.history = TwoEpochs();
    report_.samples_committed = 6;
    report_.samples_expected = 6;
    report_.weights_sha256 = "f00d";
  }

  nlohmann::json Parsed() const { return nlohmann::json::parse(ToJson(report_)); }

  RunReport report_;
};

TEST_F(ReportTest, WhatItMustSay) {
  const nlohmann::json json = Parsed();
  EXPECT_EQ(json["outcome"], "success");
  EXPECT_EQ(json["test_accuracy"], 0.75);
  EXPECT_EQ(json["test_loss"], 0.25);
  EXPECT_EQ(json["samples_committed"], 6);
  EXPECT_EQ(json["samples_expected"], 6);
  EXPECT_EQ(json["steps"], 4);
  EXPECT_EQ(json["generations"], 1);
  EXPECT_EQ(json["world_size"], 2);
  EXPECT_EQ(json["backend"], "cpu");
  EXPECT_THAT(json["epoch_seconds"], ElementsAre(0.25, 0.75));
  EXPECT_EQ(json["samples_per_second"], 6);
  EXPECT_EQ(json["weights_sha256"], "f00d");
  EXPECT_EQ(json["data_digest"], "abc");
  EXPECT_EQ(json["seed"], 7);
}

TEST_F(ReportTest, Extras) {
  Member member;
  member.set_host("box");
  member.set_pid(4242);
  member.set_device_description("CPU, AVX-512");
  report_.members = {member, member};
  const nlohmann::json json = Parsed();
  EXPECT_EQ(json["started"], "2023-11-14T22:13:20.250Z");
  EXPECT_EQ(json["ended"], "2023-11-14T22:13:21.750Z");
  EXPECT_EQ(json["wall_seconds"], 1.5);
  EXPECT_EQ(json["run_id"], "run");
  EXPECT_EQ(json["run_dir"], "runs/x");
  EXPECT_EQ(json["version"], "0.1.0");
  EXPECT_THAT(json["history"]["loss"], ElementsAre(3, 0.5));
  EXPECT_THAT(json["history"]["accuracy"], ElementsAre(1.0 / 3, 1));
  EXPECT_THAT(json["history"]["val_loss"], ElementsAre(0.75, 0.25));
  EXPECT_THAT(json["history"]["val_accuracy"], ElementsAre(0.25, 0.75));
  ASSERT_EQ(json["members"].size(), 2u);
  EXPECT_EQ(json["members"][1]["rank"], 1);
  EXPECT_EQ(json["members"][1]["host"], "box");
  EXPECT_EQ(json["members"][1]["pid"], 4242);
  EXPECT_EQ(json["members"][1]["device"], "CPU, AVX-512");
}

TEST_F(ReportTest, ConfigurationAsTyped) {
  const nlohmann::json json = nlohmann::json::parse(ToJson(report_.config));
  EXPECT_EQ(json, Parsed()["config"]);
  EXPECT_THAT(json["layers"], ElementsAre(2, 2));
  EXPECT_EQ(json["optimizer"], "adam");
  EXPECT_EQ(json["learning_rate"], 0.001);
  EXPECT_EQ(json["epsilon"], 1e-7);
  EXPECT_EQ(json["global_batch"], 2);
  EXPECT_EQ(json["epochs"], 2);
  EXPECT_EQ(json["num_train_samples"], 3);
  EXPECT_EQ(json["num_test_samples"], 4);
  EXPECT_EQ(json["reproducible"], false);
  report_.config.set_reproducible(true);
  EXPECT_EQ(Parsed()["config"]["reproducible"], true);
}

TEST_F(ReportTest, SgdHasNoMoments) {
  report_.config.set_optimizer(SGD);
  const nlohmann::json json = Parsed()["config"];
  EXPECT_EQ(json["optimizer"], "sgd");
  EXPECT_FALSE(json.contains("beta1"));
}

TEST_F(ReportTest, TheLargestSeedIsKept) {
  report_.config.set_seed(std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(Parsed()["seed"].get<uint64_t>(), std::numeric_limits<uint64_t>::max());
}

TEST_F(ReportTest, ARunThatNeverBegan) {
  report_ = RunReport();
  report_.reason = "waited 600 s for 2 of 3 workers";
  const nlohmann::json json = Parsed();
  EXPECT_EQ(json["outcome"], "failed");
  EXPECT_EQ(json["reason"], "waited 600 s for 2 of 3 workers");
  EXPECT_TRUE(json["test_accuracy"].is_null());
  EXPECT_TRUE(json["test_loss"].is_null());
  EXPECT_TRUE(json["weights_sha256"].is_null());
  EXPECT_EQ(json["backend"], "none");
  EXPECT_EQ(json["epoch_seconds"].size(), 0u);
  EXPECT_TRUE(json["epoch_seconds"].is_array());
  EXPECT_EQ(json["samples_per_second"], 0);
}

TEST_F(ReportTest, WhatJsonCannotHold) {
  report_.outcome = RunOutcome::kInterrupted;
  report_.reason = "bad \xff bytes";
  report_.config.set_learning_rate(std::nanf(""));
  const nlohmann::json json = Parsed();
  EXPECT_EQ(json["outcome"], "interrupted");
  EXPECT_EQ(json["reason"], "bad \xEF\xBF\xBD bytes");
  EXPECT_TRUE(json["config"]["learning_rate"].is_null());
}

TEST(BackendNameTest, Names) {
  EXPECT_EQ(BackendName(CPU), "cpu");
  EXPECT_EQ(BackendName(CUDA), "cuda");
  EXPECT_EQ(BackendName(DEVICE_KIND_UNSPECIFIED), "none");
}

}  // namespace
}  // namespace ringmaster
