#include "coordinator/run_logger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "tests/coordinator/event_reader.h"
#include "tests/coordinator/records.h"

namespace ringmaster {
namespace {

using tensorboard::Event;
using tensorboard::Point;
using tensorboard::ReadRun;
using tensorboard::Scalars;
using tensorboard::Summary;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

const absl::Time kStart = absl::FromUnixSeconds(1700000000);

class RunLoggerTest : public ::testing::Test {
 protected:
  RunLoggerTest() : config_(SmallConfig()) {}

  void Create() {
    auto logger = RunLogger::Create(directory_.path(), config_, kStart);
    ASSERT_TRUE(logger.ok()) << logger.status();
    logger_ = *std::move(logger);
  }
  void Record(const GlobalRecord& record) {
    const absl::Status status = logger_->Record(record, kStart);
    ASSERT_TRUE(status.ok()) << status;
  }
  // Closes the files and reads them back.
  void Close() {
    ASSERT_TRUE(logger_->Close().ok());
    train_ = ReadRun(directory_.path() + "/tensorboard/train");
    validation_ = ReadRun(directory_.path() + "/tensorboard/validation");
  }
  // Two epochs of two steps, of 2 samples and 1.
  void RecordTwoEpochs() {
    Create();
    Record(TrainingStep(0, 0, {.loss_sum = 4, .correct = 1, .samples = 2}));
    Record(TrainingStep(0, 1, {.loss_sum = 5, .correct = 0, .samples = 1, .epoch_seconds = 0.5}));
    Record(Evaluation(0, {.loss_sum = 3, .correct = 1, .samples = 4}));
    Record(TrainingStep(1, 0, {.loss_sum = 1, .correct = 2, .samples = 2}));
    Record(TrainingStep(1, 1, {.loss_sum = 0.5, .correct = 1, .samples = 1, .epoch_seconds = 0.5}));
    Record(Evaluation(1, {.loss_sum = 1, .correct = 4, .samples = 4}));
    Close();
  }

  TrainingConfig config_;
  TemporaryDirectory directory_;
  std::unique_ptr<RunLogger> logger_;
  std::vector<Event> train_;
  std::vector<Event> validation_;
};

std::set<std::string> Tags(const std::vector<Event>& events) {
  std::set<std::string> tags;
  for (const Event& event : events) {
    for (const Summary::Value& value : event.summary().value()) tags.insert(value.tag());
  }
  return tags;
}

// Keras shows the mean over the samples of the epoch so far, at the number of batches trained.
TEST_F(RunLoggerTest, Batches) {
  RecordTwoEpochs();
  EXPECT_THAT(Scalars(train_, "batch_loss"),
              ElementsAre(Point{1, 2.0}, Point{2, 3.0}, Point{3, 0.5}, Point{4, 0.5}));
  EXPECT_THAT(Scalars(train_, "batch_accuracy"),
              ElementsAre(Point{1, 0.5}, Point{2, 1.0f / 3}, Point{3, 1.0}, Point{4, 1.0}));
}

TEST_F(RunLoggerTest, EpochsOfTheTrainingRun) {
  RecordTwoEpochs();
  EXPECT_THAT(Scalars(train_, "epoch_loss"), ElementsAre(Point{0, 3.0}, Point{1, 0.5}));
  EXPECT_THAT(Scalars(train_, "epoch_accuracy"), ElementsAre(Point{0, 1.0f / 3}, Point{1, 1.0}));
  EXPECT_THAT(Scalars(train_, "epoch_learning_rate"),
              ElementsAre(Point{0, 0.001f}, Point{1, 0.001f}));
}

TEST_F(RunLoggerTest, Validation) {
  RecordTwoEpochs();
  EXPECT_THAT(Scalars(validation_, "epoch_loss"), ElementsAre(Point{0, 0.75}, Point{1, 0.25}));
  EXPECT_THAT(Scalars(validation_, "epoch_accuracy"), ElementsAre(Point{0, 0.25}, Point{1, 1.0}));
  EXPECT_THAT(Scalars(validation_, "evaluation_loss_vs_iterations"),
              ElementsAre(Point{2, 0.75}, Point{4, 0.25}));
  EXPECT_THAT(Scalars(validation_, "evaluation_accuracy_vs_iterations"),
              ElementsAre(Point{2, 0.25}, Point{4, 1.0}));
}

// A record without times (of a first step) must not become an infinite speed.
TEST_F(RunLoggerTest, TagsWithoutTimes) {
  RecordTwoEpochs();
  EXPECT_THAT(Tags(train_), ElementsAre("batch_accuracy", "batch_loss", "config", "epoch_accuracy",
                                        "epoch_learning_rate", "epoch_loss"));
  EXPECT_THAT(Tags(validation_),
              ElementsAre("epoch_accuracy", "epoch_loss", "evaluation_accuracy_vs_iterations",
                          "evaluation_loss_vs_iterations"));
}

TEST_F(RunLoggerTest, ConfigurationAsText) {
  RecordTwoEpochs();
  ASSERT_GE(train_.size(), 2u);
  const Summary::Value& value = train_[1].summary().value(0);
  EXPECT_EQ(value.tag(), "config");
  EXPECT_THAT(value.tensor().string_val(0), HasSubstr("| layers | 2 - 2 |"));
  EXPECT_THAT(value.tensor().string_val(0), HasSubstr("| learning rate | 0.001 |"));
  EXPECT_THAT(value.tensor().string_val(0), HasSubstr("| steps an epoch | 2 |"));
}

// The slowest rank decides how long a step takes.
TEST_F(RunLoggerTest, StepsPerSecond) {
  Create();
  Record(TrainingStep(0, 0, {.samples = 2, .compute_us = {0, 0}, .all_reduce_us = {0, 0}}));
  Record(TrainingStep(0, 1, {.samples = 1, .compute_us = {300, 100}, .all_reduce_us = {100, 400}}));
  Close();
  EXPECT_THAT(Scalars(train_, "batch_steps_per_second"), ElementsAre(Point{2, 2000}));
}

// 25 steps: windows of 3, so points at 3, 6 ... 24 and at the end of the epoch.
TEST_F(RunLoggerTest, RanksAreAveragedOverWindows) {
  config_.set_num_train_samples(75);
  config_.set_global_batch(3);
  Create();
  for (uint32_t step = 0; step < 25; ++step) {
    const float extra = step == 4 ? 300 : 0;
    Record(TrainingStep(
        0, step, {.samples = 3, .compute_us = {100 + extra, 250}, .all_reduce_us = {300, 150}}));
  }
  Close();
  const auto points = Scalars(train_, "ranks/rank_0/samples_per_second");
  ASSERT_THAT(points, SizeIs(9));
  EXPECT_EQ(points[0], (Point{3, 5000}));   // 6 samples in 3 * 400 us
  EXPECT_EQ(points[1], (Point{6, 4000}));   // 6 samples in 3 * 400 + 300 us
  EXPECT_EQ(points[8], (Point{25, 5000}));  // the last step alone
  EXPECT_EQ(Scalars(train_, "ranks/rank_1/samples_per_second")[0], (Point{3, 2500}));
  EXPECT_EQ(Scalars(train_, "ranks/rank_0/compute_ms")[1], (Point{6, 0.2f}));
  EXPECT_EQ(Scalars(train_, "ranks/rank_0/all_reduce_ms")[1], (Point{6, 0.3f}));
  EXPECT_EQ(Scalars(train_, "ranks/rank_1/compute_ms")[0], (Point{3, 0.25}));
  EXPECT_THAT(Scalars(train_, "ranks/rank_2/compute_ms"), SizeIs(0));
}

// 48 samples over two ranks: micro-shards stay whole.
TEST_F(RunLoggerTest, RanksOfAReproducibleRunHaveWholeMicroShards) {
  config_.set_num_train_samples(48);
  config_.set_global_batch(48);
  config_.set_reproducible(true);
  Create();
  Record(
      TrainingStep(0, 0, {.samples = 48, .compute_us = {900, 900}, .all_reduce_us = {100, 100}}));
  Close();
  EXPECT_EQ(Scalars(train_, "ranks/rank_0/samples_per_second")[0], (Point{1, 32'000}));
  EXPECT_EQ(Scalars(train_, "ranks/rank_1/samples_per_second")[0], (Point{1, 16'000}));
}

TEST_F(RunLoggerTest, StepsOfATagNeverGoBack) {
  RecordTwoEpochs();
  for (const auto* run : {&train_, &validation_}) {
    for (const std::string& tag : Tags(*run)) {
      if (tag == "config") continue;
      const std::vector<Point> points = Scalars(*run, tag);
      for (size_t i = 1; i < points.size(); ++i) EXPECT_LT(points[i - 1].step, points[i].step);
    }
  }
}

TEST_F(RunLoggerTest, WeightHistograms) {
  Create();
  const ModelSpec model = {{2, 3, 2}};
  TrainState state;
  state.parameters = {1, 2, 3, 4, 5, 6, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8};
  ASSERT_TRUE(logger_->Weights(4, model, state, kStart).ok());
  train_ = ReadRun(directory_.path() + "/tensorboard/train");  // without a flush
  ASSERT_EQ(train_.size(), 3u);
  EXPECT_EQ(train_[2].step(), 4);
  const Summary& summary = train_[2].summary();
  std::vector<std::string> tags;
  std::vector<double> counts;
  for (const Summary::Value& value : summary.value()) {
    tags.push_back(value.tag());
    counts.push_back(0);
    for (int i = 2; i < 90; i += 3) counts.back() += value.tensor().double_val(i);
  }
  EXPECT_THAT(tags, ElementsAre("dense/kernel/histogram", "dense/bias/histogram",
                                "dense_1/kernel/histogram", "dense_1/bias/histogram"));
  EXPECT_THAT(counts, ElementsAre(6, 3, 6, 2));
  EXPECT_EQ(summary.value(2).tensor().double_val(0), 1);   // left end of dense_1/kernel's first
  EXPECT_EQ(summary.value(2).tensor().double_val(88), 6);  // right end of its last
}

TEST_F(RunLoggerTest, WeightsThatDoNotFitTheModel) {
  Create();
  EXPECT_EQ(logger_->Weights(0, ModelSpec{{2, 2}}, TrainState{}, kStart).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(RunLoggerTest, ADirectoryHoldsOneRun) {
  Create();
  const auto second = RunLogger::Create(directory_.path(), config_, kStart);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(RunLoggerTest, FlushMakesEverythingVisible) {
  Create();
  Record(TrainingStep(0, 0, {.loss_sum = 4, .samples = 2}));
  Record(Evaluation(0, {.loss_sum = 3, .samples = 4}));
  ASSERT_TRUE(logger_->Flush().ok());
  EXPECT_THAT(Scalars(ReadRun(directory_.path() + "/tensorboard/train"), "batch_loss"), SizeIs(1));
  EXPECT_THAT(Scalars(ReadRun(directory_.path() + "/tensorboard/validation"), "epoch_loss"),
              SizeIs(1));
}

// Two epochs of 25 steps, on two ranks, whose every value differs.
class RunLoggerLivesTest : public RunLoggerTest {
 protected:
  RunLoggerLivesTest() {
    config_.set_num_train_samples(75);
    config_.set_global_batch(3);
    for (uint32_t epoch = 0; epoch < 2; ++epoch) {
      for (uint32_t step = 0; step < 25; ++step) records_.push_back(Step(epoch, step, 1));
      records_.push_back(Evaluation(epoch, {.loss_sum = 3.0 + epoch, .correct = 1, .samples = 4}));
    }
    const TemporaryDirectory directory;
    auto logger = RunLogger::Create(directory.path(), config_, kStart);
    EXPECT_TRUE(logger.ok()) << logger.status();
    for (const GlobalRecord& record : records_) {
      EXPECT_TRUE((*logger)->Record(record, kStart).ok());
    }
    EXPECT_TRUE((*logger)->Close().ok());
    wanted_ = Curves(directory.path());
  }

  static GlobalRecord Step(uint32_t epoch, uint32_t step, double factor) {
    const auto us = [&](float base) {
      const bool known = epoch > 0 || step > 0;
      return known ? static_cast<float>(factor) * (base + static_cast<float>(step * step)) : 0;
    };
    return TrainingStep(epoch, step,
                        {.loss_sum = factor * (100.0 - step - 25.0 * epoch),
                         .correct = step % 3,
                         .samples = 3,
                         .compute_us = {us(100), us(250)},
                         .all_reduce_us = {us(300), us(150)}});
  }

  void Resume() {
    logger_.reset();
    std::string note;
    auto logger = RunLogger::Resume(directory_.path(), config_, kStart, &note);
    ASSERT_TRUE(logger.ok()) << logger.status();
    logger_ = *std::move(logger);
  }
  void Play(size_t first, size_t end) {
    for (size_t i = first; i < end; ++i) Record(records_[i]);
  }
  // Cuts the last `bytes` off the newest file of a run; all of it, if it has no more.
  void Tear(const std::string& run, size_t bytes) {
    std::set<std::string> files;
    for (const auto& file : std::filesystem::directory_iterator(directory_.path() + run)) {
      files.insert(file.path());
    }
    const size_t size = std::filesystem::file_size(*files.rbegin());
    std::filesystem::resize_file(*files.rbegin(), size - std::min(size, bytes));
  }

  using CurveMap = std::map<std::string, std::vector<Point>>;
  static CurveMap Curves(const std::string& run_dir) {
    CurveMap curves;
    for (const std::string run : {"/tensorboard/train", "/tensorboard/validation"}) {
      const std::vector<Event> events = tensorboard::ReadLives(run_dir + run);
      for (const std::string& tag : Tags(events)) {
        if (tag != "config") curves[run + "/" + tag] = Scalars(events, tag);
      }
    }
    return curves;
  }

  std::vector<GlobalRecord> records_;
  CurveMap wanted_;
};

// After each record there is a crash, which tears a part off the end of both logs.
TEST_F(RunLoggerLivesTest, ARunOfManyLives) {
  Create();
  for (size_t done = 1; done <= records_.size(); ++done) {
    const size_t epoch_start = (done - 1) / 26 * 26;
    Play(epoch_start, done);
    logger_.reset();
    Tear("/tensorboard/train", done * 7 % 230);
    Tear("/tensorboard/validation", done * 7 % 230);
    Resume();
    Play(done > 26 ? 0 : epoch_start, done);  // from the journal
  }
  ASSERT_TRUE(logger_->Close().ok());
  EXPECT_EQ(Curves(directory_.path()), wanted_);
}

// The second time a step is computed it has other times, and other digits.
TEST_F(RunLoggerLivesTest, StepsComputedAgainAreLoggedOnce) {
  Create();
  Play(0, 40);
  for (uint32_t step = 5; step < 14; ++step) Record(Step(1, step, 3));
  Play(0, 3);
  Play(30, records_.size());
  ASSERT_TRUE(logger_->Close().ok());
  EXPECT_EQ(Curves(directory_.path()), wanted_);
}

TEST_F(RunLoggerLivesTest, TheConfigurationIsLoggedOnce) {
  Create();
  for (int life = 0; life < 3; ++life) Resume();
  ASSERT_TRUE(logger_->Close().ok());
  int configs = 0;
  for (const Event& event : tensorboard::ReadLives(directory_.path() + "/tensorboard/train")) {
    for (const Summary::Value& value : event.summary().value()) configs += value.tag() == "config";
  }
  EXPECT_EQ(configs, 1);
}

TEST_F(RunLoggerLivesTest, ResumesWhereThereIsNothing) {
  Resume();
  Play(0, records_.size());
  ASSERT_TRUE(logger_->Close().ok());
  EXPECT_EQ(Curves(directory_.path()), wanted_);
}

TEST_F(RunLoggerLivesTest, SyncMakesEverythingVisible) {
  Create();
  Play(0, records_.size());
  ASSERT_TRUE(logger_->Sync().ok());
  EXPECT_EQ(Curves(directory_.path()), wanted_);
}

}  // namespace
}  // namespace ringmaster
