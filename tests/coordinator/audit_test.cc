#include "coordinator/audit.h"

#include <limits>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/planned_records.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

// 503 samples in batches of 128: four steps an epoch, the last of 119.
TrainingConfig Config() {
  TrainingConfig config;
  config.set_seed(7);
  config.set_global_batch(128);
  config.set_epochs(3);
  config.set_num_train_samples(503);
  config.set_num_test_samples(101);
  return config;
}

class AuditTest : public ::testing::Test {
 protected:
  AuditTest() { audit_.SetWorldSize(2); }

  // Gives the audit all records before the one at `index`, which is returned.
  GlobalRecord FeedUpTo(size_t index) {
    for (size_t i = 0; i < index; ++i) EXPECT_TRUE(audit_.Add(records_[i]).ok());
    return records_[index];
  }

  void ExpectRefused(const GlobalRecord& record, absl::StatusCode code,
                     const std::string& message) {
    const uint64_t records = audit_.records();
    const uint64_t samples = audit_.samples_committed();
    const absl::Status status = audit_.Add(record);
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_EQ(audit_.records(), records);
    EXPECT_EQ(audit_.samples_committed(), samples);
  }

  const std::vector<GlobalRecord> records_ = PlannedRecords(Config(), 2);
  Audit audit_{Config()};
};

TEST_F(AuditTest, FaithfulRun) {
  ASSERT_EQ(records_.size(), 15u);
  EXPECT_EQ(audit_.samples_expected(), 1509u);
  for (const GlobalRecord& record : records_) {
    EXPECT_FALSE(audit_.complete());
    ASSERT_TRUE(audit_.Add(record).ok());
  }
  EXPECT_TRUE(audit_.complete());
  EXPECT_EQ(audit_.records(), 15u);
  EXPECT_EQ(audit_.samples_committed(), 1509u);
}

TEST_F(AuditTest, PositionIsTheNextThingToDo) {
  const auto expect = [this](uint32_t epoch, uint32_t step, Position::Phase phase) {
    EXPECT_EQ(audit_.position().epoch(), epoch);
    EXPECT_EQ(audit_.position().step(), step);
    EXPECT_EQ(audit_.position().phase(), phase);
  };
  expect(0, 0, Position::TRAIN);
  ASSERT_TRUE(audit_.Add(records_[0]).ok());
  expect(0, 1, Position::TRAIN);
  for (int i = 1; i < 4; ++i) ASSERT_TRUE(audit_.Add(records_[i]).ok());
  expect(0, 4, Position::EVALUATE);
  ASSERT_TRUE(audit_.Add(records_[4]).ok());
  expect(1, 0, Position::TRAIN);
  for (int i = 5; i < 15; ++i) ASSERT_TRUE(audit_.Add(records_[i]).ok());
  expect(3, 0, Position::DONE);
}

TEST_F(AuditTest, DroppedSample) {
  GlobalRecord record = FeedUpTo(6);
  record.set_samples(127);
  ExpectRefused(record, absl::StatusCode::kDataLoss,
                "epoch 1, step 1: the ranks gathered 127 samples instead of 128");
}

TEST_F(AuditTest, DroppedSampleOfTheLastStep) {
  GlobalRecord record = FeedUpTo(3);
  record.set_samples(118);
  ExpectRefused(record, absl::StatusCode::kDataLoss,
                "epoch 0, step 3: the ranks gathered 118 samples instead of 119");
}

// As many as wanted, but one of them is another.
TEST_F(AuditTest, OtherSample) {
  GlobalRecord record = FeedUpTo(2);
  record.set_sample_digest(record.sample_digest() + SampleFingerprint(3) - SampleFingerprint(4));
  ExpectRefused(record, absl::StatusCode::kDataLoss,
                "epoch 0, step 2: the ranks gathered 128 samples, but not those of the plan");
}

// The batch of another step of the same epoch.
TEST_F(AuditTest, OtherBatch) {
  GlobalRecord record = FeedUpTo(1);
  record.set_sample_digest(records_[2].sample_digest());
  ExpectRefused(record, absl::StatusCode::kDataLoss, "epoch 0, step 1");
}

TEST_F(AuditTest, EvaluationOfTooFew) {
  GlobalRecord record = FeedUpTo(4);
  record.set_samples(100);
  ExpectRefused(record, absl::StatusCode::kDataLoss,
                "evaluation after epoch 0: the ranks gathered 100 samples instead of 101");
}

TEST_F(AuditTest, EvaluationOfOtherSamples) {
  GlobalRecord record = FeedUpTo(4);
  record.set_sample_digest(record.sample_digest() + 1);
  ExpectRefused(record, absl::StatusCode::kDataLoss, "evaluation after epoch 0");
}

TEST_F(AuditTest, MoreCorrectThanThereAre) {
  GlobalRecord record = FeedUpTo(0);
  record.set_correct(129);
  ExpectRefused(record, absl::StatusCode::kDataLoss, "129 of 128");
}

TEST_F(AuditTest, Gap) {
  FeedUpTo(1);
  ExpectRefused(records_[2], absl::StatusCode::kInvalidArgument,
                "the record of epoch 0, step 2 came where that of epoch 0, step 1 was wanted");
}

TEST_F(AuditTest, Duplicate) {
  FeedUpTo(2);
  ExpectRefused(records_[1], absl::StatusCode::kInvalidArgument, "epoch 0, step 2 was wanted");
}

TEST_F(AuditTest, TrainingWhereAnEvaluationIsDue) {
  FeedUpTo(4);
  ExpectRefused(records_[5], absl::StatusCode::kInvalidArgument,
                "the record of epoch 1, step 0 came where that of evaluation after epoch 0");
}

TEST_F(AuditTest, RecordAfterTheLast) {
  FeedUpTo(14);
  ASSERT_TRUE(audit_.Add(records_[14]).ok());
  ExpectRefused(records_[14], absl::StatusCode::kInvalidArgument, "after the last one of the run");
}

TEST_F(AuditTest, LossThatIsNotFinite) {
  GlobalRecord record = FeedUpTo(1);
  record.set_non_finite(5);
  ExpectRefused(record, absl::StatusCode::kOutOfRange,
                "epoch 0, step 1: the loss of 5 of 128 samples is not finite");
}

TEST_F(AuditTest, TimesOfAnotherWorldSize) {
  GlobalRecord record = FeedUpTo(0);
  record.add_compute_us(1);
  record.add_all_reduce_us(1);
  ExpectRefused(record, absl::StatusCode::kInvalidArgument, "times of 3 and 3 ranks, wanted 2");
}

TEST_F(AuditTest, TimesThatAreNoTimes) {
  const float bad[] = {-1, std::numeric_limits<float>::quiet_NaN(),
                       std::numeric_limits<float>::infinity()};
  for (const float us : bad) {
    GlobalRecord record = records_[0];
    record.set_all_reduce_us(1, us);
    ExpectRefused(record, absl::StatusCode::kInvalidArgument, "negative or not finite");
    record = records_[0];
    record.set_epoch_seconds(us);
    ExpectRefused(record, absl::StatusCode::kInvalidArgument, "negative or not finite");
  }
}

// Single-sample steps, so that every order is a different sequence of digests.
TEST(AuditOrderTest, EachEpochHasAnOrderOfItsOwn) {
  TrainingConfig config = Config();
  config.set_global_batch(1);
  const std::vector<GlobalRecord> records = PlannedRecords(config, 1);
  const uint32_t steps = config.num_train_samples();
  std::set<uint64_t> seen;
  int moved = 0;
  for (uint32_t step = 0; step < steps; ++step) {
    seen.insert(records[step].sample_digest());
    moved += records[step].sample_digest() != records[steps + 1 + step].sample_digest() ? 1 : 0;
  }
  EXPECT_EQ(seen.size(), steps);
  EXPECT_GT(moved, 400);
  Audit audit(config);
  for (const GlobalRecord& record : records) ASSERT_TRUE(audit.Add(record).ok());
  EXPECT_TRUE(audit.complete());
}

}  // namespace
}  // namespace ringmaster
