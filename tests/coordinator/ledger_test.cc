#include "coordinator/ledger.h"

#include <limits>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/planned_records.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

// 503 samples in batches of 128: four steps an epoch, the last of 119, and the evaluation. Three
// epochs: 15 records.
TrainingConfig Config() {
  TrainingConfig config;
  config.set_seed(7);
  config.set_global_batch(128);
  config.set_epochs(3);
  config.set_num_train_samples(503);
  config.set_num_test_samples(101);
  return config;
}

class LedgerTest : public ::testing::Test {
 protected:
  // Adds the records of [ledger_.size(), end).
  void Fill(uint64_t end) {
    while (ledger_.size() < end) {
      const auto is_new = ledger_.Add(records_[ledger_.size()]);
      ASSERT_TRUE(is_new.ok()) << is_new.status();
      ASSERT_TRUE(*is_new);
    }
  }
  // The same, and returns the next one.
  GlobalRecord FillUpTo(uint64_t end) {
    Fill(end);
    return records_[end];
  }

  void ExpectRefused(const GlobalRecord& record, absl::StatusCode code,
                     const std::string& message) {
    const std::string before = ledger_.Snapshot().SerializeAsString();
    const absl::StatusOr<bool> added = ledger_.Add(record);
    EXPECT_EQ(added.status().code(), code) << added.status();
    EXPECT_THAT(std::string(added.status().message()), HasSubstr(message));
    EXPECT_EQ(ledger_.Snapshot().SerializeAsString(), before);
  }

  // What Audit() finds once the snapshot has been changed by `change`.
  template <typename Change>
  Ledger::Result AuditAfter(Change change) {
    LedgerSnapshot snapshot = ledger_.Snapshot();
    change(&snapshot);
    const auto ledger = Ledger::FromSnapshot(Config(), snapshot);
    EXPECT_TRUE(ledger.ok()) << ledger.status();
    return ledger.ok() ? ledger->Audit() : Ledger::Result();
  }

  const std::vector<GlobalRecord> records_ = PlannedRecords(Config(), 2);
  Ledger ledger_{Config()};
};

// ---------------------------------------------------------------- records

TEST_F(LedgerTest, FaithfulRun) {
  ASSERT_EQ(records_.size(), 15u);
  EXPECT_EQ(ledger_.samples_expected(), 1509u);
  for (const GlobalRecord& record : records_) {
    EXPECT_FALSE(ledger_.complete());
    EXPECT_EQ(ledger_.Add(record).value_or(false), true);
  }
  EXPECT_TRUE(ledger_.complete());
  EXPECT_EQ(ledger_.size(), 15u);
  EXPECT_EQ(ledger_.samples(), 1509u);
  EXPECT_EQ(ledger_.redone(), 0u);
  const Ledger::Result audit = ledger_.Audit();
  EXPECT_TRUE(audit.status.ok()) << audit.status;
  EXPECT_EQ(audit.lost, 0u);
  EXPECT_EQ(audit.doubled, 0u);
}

TEST_F(LedgerTest, SizeIsThePositionOfTheNextThingToDo) {
  const auto expect = [this](uint64_t size, const std::string& place) {
    Fill(size);
    EXPECT_EQ(DescribePosition(ledger_.timeline(), ledger_.size()), place);
  };
  expect(0, "epoch 0, step 0");
  expect(1, "epoch 0, step 1");
  expect(4, "evaluation after epoch 0");
  expect(5, "epoch 1, step 0");
  expect(15, "the end");
}

TEST_F(LedgerTest, DroppedSample) {
  GlobalRecord record = FillUpTo(6);
  record.set_samples(127);
  ExpectRefused(record, absl::StatusCode::kDataLoss,
                "epoch 1, step 1: the ranks gathered 127 samples instead of 128");
}

TEST_F(LedgerTest, DroppedSampleOfTheLastStep) {
  GlobalRecord record = FillUpTo(3);
  record.set_samples(118);
  ExpectRefused(record, absl::StatusCode::kDataLoss,
                "epoch 0, step 3: the ranks gathered 118 samples instead of 119");
}

// As many as wanted, but one of them is another.
TEST_F(LedgerTest, OtherSample) {
  GlobalRecord record = FillUpTo(2);
  record.set_sample_digest(record.sample_digest() + SampleFingerprint(3) - SampleFingerprint(4));
  ExpectRefused(record, absl::StatusCode::kDataLoss,
                "epoch 0, step 2: the ranks gathered 128 samples, but not those of the plan");
}

// The batch of another step of the same epoch.
TEST_F(LedgerTest, OtherBatch) {
  GlobalRecord record = FillUpTo(1);
  record.set_sample_digest(records_[2].sample_digest());
  ExpectRefused(record, absl::StatusCode::kDataLoss, "epoch 0, step 1");
}

TEST_F(LedgerTest, EvaluationOfTooFew) {
  GlobalRecord record = FillUpTo(4);
  record.set_samples(100);
  ExpectRefused(record, absl::StatusCode::kDataLoss,
                "evaluation after epoch 0: the ranks gathered 100 samples instead of 101");
}

TEST_F(LedgerTest, EvaluationOfOtherSamples) {
  GlobalRecord record = FillUpTo(4);
  record.set_sample_digest(record.sample_digest() + 1);
  ExpectRefused(record, absl::StatusCode::kDataLoss, "evaluation after epoch 0");
}

TEST_F(LedgerTest, MoreCorrectThanThereAre) {
  GlobalRecord record = records_[0];
  record.set_correct(129);
  ExpectRefused(record, absl::StatusCode::kDataLoss, "129 of 128");
}

TEST_F(LedgerTest, Gap) {
  Fill(1);
  ExpectRefused(records_[2], absl::StatusCode::kInvalidArgument,
                "the record of epoch 0, step 2 came where that of epoch 0, step 1 was wanted");
}

TEST_F(LedgerTest, TrainingWhereAnEvaluationIsDue) {
  Fill(4);
  ExpectRefused(records_[5], absl::StatusCode::kInvalidArgument,
                "the record of epoch 1, step 0 came where that of evaluation after epoch 0");
}

// Every rank keeps records until they are acknowledged, and a new rank 0 sends what it has.
TEST_F(LedgerTest, DuplicateIsPassedOver) {
  Fill(6);
  const std::string before = ledger_.Snapshot().SerializeAsString();
  for (int i = 0; i < 6; ++i) EXPECT_EQ(ledger_.Add(records_[i]).value_or(true), false) << i;
  EXPECT_EQ(ledger_.Snapshot().SerializeAsString(), before);
  Fill(15);
  EXPECT_EQ(ledger_.Add(records_[14]).value_or(true), false);
  EXPECT_EQ(ledger_.samples(), 1509u);
}

TEST_F(LedgerTest, PlacesThatAreNone) {
  GlobalRecord record = records_[0];
  record.set_epoch(3);
  ExpectRefused(record, absl::StatusCode::kInvalidArgument, "in a run of 3 epochs of 4 steps");
  record = records_[0];
  record.set_step(4);
  ExpectRefused(record, absl::StatusCode::kInvalidArgument, "epoch 0, step 4");
  record = records_[4];
  record.set_step(1);
  ExpectRefused(record, absl::StatusCode::kInvalidArgument, "evaluation after epoch 0, step 1");
}

TEST_F(LedgerTest, LossThatIsNotFinite) {
  GlobalRecord record = FillUpTo(1);
  record.set_non_finite(5);
  ExpectRefused(record, absl::StatusCode::kOutOfRange,
                "epoch 0, step 1: the loss of 5 of 128 samples is not finite");
}

TEST_F(LedgerTest, TimesOfUnequallyManyRanks) {
  GlobalRecord record = records_[0];
  record.add_compute_us(1);
  ExpectRefused(record, absl::StatusCode::kInvalidArgument,
                "compute times of 3 ranks and all-reduce times of 2");
}

TEST_F(LedgerTest, TimesThatAreNoTimes) {
  const float bad[] = {-1, std::numeric_limits<float>::quiet_NaN(),
                       std::numeric_limits<float>::infinity()};
  for (const float us : bad) {
    GlobalRecord record = records_[0];
    record.set_all_reduce_us(1, us);
    ExpectRefused(record, absl::StatusCode::kInvalidArgument, "negative or not finite");
    record = records_[0];
    record.set_compute_us(0, us);
    ExpectRefused(record, absl::StatusCode::kInvalidArgument, "negative or not finite");
    record = records_[0];
    record.set_epoch_seconds(us);
    ExpectRefused(record, absl::StatusCode::kInvalidArgument, "negative or not finite");
  }
}

// Single-sample steps, so that every order is a different sequence of digests.
TEST(LedgerOrderTest, EachEpochHasAnOrderOfItsOwn) {
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
  Ledger ledger(config);
  for (const GlobalRecord& record : records) ASSERT_TRUE(ledger.Add(record).ok());
  EXPECT_TRUE(ledger.Audit().status.ok());
}

// ---------------------------------------------------------------- generations

TEST_F(LedgerTest, GoingOnWhereItStandsLosesNothing) {
  ledger_.Resume(1, 0);
  Fill(6);
  ledger_.Resume(2, 6);
  EXPECT_EQ(ledger_.size(), 6u);
  EXPECT_EQ(ledger_.redone(), 0u);
  EXPECT_EQ(ledger_.committed(), 6u);
  EXPECT_EQ(ledger_.lineage().GenerationOf(5), 1u);
  EXPECT_EQ(ledger_.lineage().GenerationOf(6), 2u);
}

// Everybody was lost, and a checkpoint before an evaluation is taken up.
TEST_F(LedgerTest, RecordsBehindTheResumptionComeOff) {
  ledger_.Resume(1, 0);
  Fill(7);
  EXPECT_EQ(ledger_.samples(), 503u + 2 * 128);
  ledger_.Resume(2, 4);
  EXPECT_EQ(ledger_.size(), 4u);
  EXPECT_EQ(ledger_.redone(), 3u);
  EXPECT_EQ(ledger_.samples(), 503u);
  EXPECT_EQ(ledger_.committed(), 4u);
  ExpectRefused(records_[7], absl::StatusCode::kInvalidArgument, "evaluation after epoch 0");
  Fill(15);
  EXPECT_EQ(ledger_.samples(), 1509u);
  EXPECT_EQ(ledger_.redone(), 3u);
  EXPECT_TRUE(ledger_.Audit().status.ok());
}

// The survivors are ahead: the records between are with them and come first.
TEST_F(LedgerTest, ResumptionAheadOfTheRecords) {
  ledger_.Resume(1, 0);
  Fill(5);
  ledger_.Resume(2, 7);
  EXPECT_EQ(ledger_.size(), 5u);
  EXPECT_EQ(ledger_.redone(), 0u);
  EXPECT_EQ(ledger_.committed(), 5u);
  Fill(8);
  EXPECT_EQ(ledger_.lineage().GenerationOf(6), 1u);
  EXPECT_EQ(ledger_.lineage().GenerationOf(7), 2u);
  // They are lost with those who had them after all.
  ledger_.Resume(3, 4);
  EXPECT_EQ(ledger_.redone(), 4u);
  EXPECT_FALSE(ledger_.lineage().Contains(2, 7));
}

TEST_F(LedgerTest, CommittedNeverGoesBeyondTheRecordsNorBack) {
  ledger_.Resume(1, 0);
  Fill(5);
  EXPECT_EQ(ledger_.committed(), 0u);
  ledger_.Commit(3);
  EXPECT_EQ(ledger_.committed(), 3u);
  ledger_.Commit(2);
  EXPECT_EQ(ledger_.committed(), 3u);
  ledger_.Commit(9);
  EXPECT_EQ(ledger_.committed(), 5u);
}

TEST(LineageTest, BeginsWithTheBase) {
  const Lineage lineage(3);
  EXPECT_TRUE(lineage.Contains(0, 3));
  EXPECT_TRUE(lineage.Contains(0, 4));
  EXPECT_FALSE(lineage.Contains(0, 2));
  EXPECT_FALSE(lineage.Contains(1, 3));
}

TEST(LineageTest, SeveralCuts) {
  Lineage lineage;
  lineage.Resume(1, 0);
  lineage.Resume(2, 10);
  lineage.Resume(4, 10);  // generation 2 did not get anywhere
  lineage.Resume(5, 20);
  EXPECT_EQ(lineage.GenerationOf(0), 1u);
  EXPECT_EQ(lineage.GenerationOf(9), 1u);
  EXPECT_EQ(lineage.GenerationOf(10), 4u);
  EXPECT_EQ(lineage.GenerationOf(19), 4u);
  EXPECT_EQ(lineage.GenerationOf(20), 5u);
  EXPECT_TRUE(lineage.Contains(1, 10));
  EXPECT_FALSE(lineage.Contains(1, 11));
  EXPECT_TRUE(lineage.Contains(2, 10));
  EXPECT_FALSE(lineage.Contains(2, 11));
  EXPECT_FALSE(lineage.Contains(2, 9));
  EXPECT_FALSE(lineage.Contains(3, 10));
  EXPECT_TRUE(lineage.Contains(4, 20));
  EXPECT_TRUE(lineage.Contains(5, 1000));

  // A checkpoint that generation 4 wrote at 15 is taken up.
  lineage.Resume(7, 15);
  EXPECT_TRUE(lineage.Contains(4, 15));
  EXPECT_FALSE(lineage.Contains(4, 16));
  EXPECT_FALSE(lineage.Contains(5, 20));
  EXPECT_EQ(lineage.GenerationOf(14), 4u);
  EXPECT_EQ(lineage.GenerationOf(15), 7u);

  // And then there is nothing left at all.
  lineage.Resume(8, 0);
  EXPECT_FALSE(lineage.Contains(7, 15));
  EXPECT_FALSE(lineage.Contains(1, 10));
  EXPECT_TRUE(lineage.Contains(1, 0));
  EXPECT_TRUE(lineage.Contains(8, 3));
}

// ---------------------------------------------------------------- begun from a checkpoint

class LedgerFromCheckpointTest : public LedgerTest {
 protected:
  // At epoch 1, step 2.
  LedgerFromCheckpointTest() { ledger_ = Ledger(Config(), 7); }
};

TEST_F(LedgerFromCheckpointTest, CountsFromThere) {
  EXPECT_EQ(ledger_.base(), 7u);
  EXPECT_EQ(ledger_.size(), 7u);
  EXPECT_EQ(ledger_.committed(), 7u);
  EXPECT_EQ(ledger_.samples_expected(), 503u - 256 + 503);
  EXPECT_EQ(ledger_.Add(records_[6]).value_or(true), false);
  ExpectRefused(records_[8], absl::StatusCode::kInvalidArgument, "epoch 1, step 2 was wanted");
  Fill(15);
  EXPECT_EQ(ledger_.samples(), ledger_.samples_expected());
  const Ledger::Result audit = ledger_.Audit();
  EXPECT_TRUE(audit.status.ok()) << audit.status;
  EXPECT_EQ(audit.lost, 0u);
  EXPECT_EQ(ledger_.At(7).step(), 2u);
}

TEST_F(LedgerFromCheckpointTest, OtherPlacesToBegin) {
  EXPECT_EQ(Ledger(Config(), 4).samples_expected(), 2u * 503);  // before an evaluation
  EXPECT_EQ(Ledger(Config(), 5).samples_expected(), 2u * 503);
  EXPECT_EQ(Ledger(Config(), 15).samples_expected(), 0u);
  EXPECT_TRUE(Ledger(Config(), 15).complete());
  EXPECT_TRUE(Ledger(Config(), 15).Audit().status.ok());
  ledger_ = Ledger(Config(), 4);
  Fill(15);
  EXPECT_TRUE(ledger_.Audit().status.ok());
}

TEST_F(LedgerFromCheckpointTest, RestOfTheEpochIsAudited) {
  Fill(15);
  const Ledger::Result result = AuditAfter(
      [](LedgerSnapshot* snapshot) { snapshot->set_samples(0, snapshot->samples(0) - 1); });
  EXPECT_EQ(result.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("epoch 1: the 246 samples"));
  EXPECT_EQ(result.lost, 1u);
}

TEST_F(LedgerFromCheckpointTest, Snapshot) {
  ledger_.Resume(1, 7);
  Fill(9);
  const auto back = Ledger::FromSnapshot(Config(), ledger_.Snapshot());
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->base(), 7u);
  EXPECT_EQ(back->size(), 9u);
  EXPECT_EQ(back->samples(), 128u + 119);
  EXPECT_EQ(back->Snapshot().SerializeAsString(), ledger_.Snapshot().SerializeAsString());
  EXPECT_TRUE(back->lineage().Contains(0, 7));
}

// ---------------------------------------------------------------- snapshots

TEST_F(LedgerTest, SnapshotAndBack) {
  ledger_.Resume(1, 0);
  Fill(9);
  ledger_.Resume(3, 6);
  Fill(8);
  ledger_.Commit(7);
  auto back = Ledger::FromSnapshot(Config(), ledger_.Snapshot());
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->Snapshot().SerializeAsString(), ledger_.Snapshot().SerializeAsString());
  EXPECT_EQ(back->size(), 8u);
  EXPECT_EQ(back->redone(), 3u);
  EXPECT_EQ(back->committed(), 7u);
  EXPECT_EQ(back->samples(), ledger_.samples());
  EXPECT_EQ(back->lineage().GenerationOf(5), 1u);
  EXPECT_EQ(back->lineage().GenerationOf(6), 3u);
  // It goes on alike.
  ledger_ = *std::move(back);
  Fill(15);
  EXPECT_TRUE(ledger_.Audit().status.ok());
}

TEST_F(LedgerTest, SnapshotsOfOtherRuns) {
  ledger_.Resume(1, 0);
  Fill(9);
  ledger_.Resume(2, 9);
  const auto expect_refused = [this](auto change) {
    LedgerSnapshot snapshot = ledger_.Snapshot();
    change(&snapshot);
    EXPECT_EQ(Ledger::FromSnapshot(Config(), snapshot).status().code(),
              absl::StatusCode::kInvalidArgument)
        << snapshot.ShortDebugString();
  };
  expect_refused([](LedgerSnapshot* snapshot) { snapshot->set_base(7); });
  expect_refused([](LedgerSnapshot* snapshot) { snapshot->set_base(16); });
  expect_refused([](LedgerSnapshot* snapshot) {  // would wrap around
    snapshot->set_base(std::numeric_limits<uint64_t>::max());
  });
  expect_refused([](LedgerSnapshot* snapshot) { snapshot->set_committed(10); });
  expect_refused([](LedgerSnapshot* snapshot) { snapshot->add_samples(1); });
  expect_refused([](LedgerSnapshot* snapshot) { snapshot->mutable_epoch_seconds()->RemoveLast(); });
  expect_refused([](LedgerSnapshot* snapshot) { snapshot->mutable_correct()->RemoveLast(); });
  expect_refused([](LedgerSnapshot* snapshot) { snapshot->add_loss_sum_quanta(1); });
  expect_refused([](LedgerSnapshot* snapshot) { snapshot->add_sample_digest(1); });
  expect_refused([](LedgerSnapshot* snapshot) { snapshot->add_positions(9); });
  expect_refused([](LedgerSnapshot* snapshot) { snapshot->set_generations(1, 1); });
  expect_refused([](LedgerSnapshot* snapshot) { snapshot->set_generations(0, 0); });
  expect_refused([](LedgerSnapshot* snapshot) { snapshot->set_positions(0, 10); });
  expect_refused([](LedgerSnapshot* snapshot) { snapshot->set_positions(1, 16); });
}

// ---------------------------------------------------------------- the audit at the end

TEST_F(LedgerTest, AuditFindsARecordThatIsMissing) {
  Fill(14);
  const Ledger::Result result = ledger_.Audit();
  EXPECT_EQ(result.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(result.status.message()),
              HasSubstr("the record of evaluation after epoch 2 is missing"));
  EXPECT_EQ(result.lost, 0u);
}

TEST_F(LedgerTest, AuditCountsWhatDidNotCome) {
  Fill(6);
  const Ledger::Result result = ledger_.Audit();
  EXPECT_THAT(std::string(result.status.message()),
              HasSubstr("epoch 1, step 1 is missing: 631 of 1509 samples"));
  EXPECT_EQ(result.lost, 1509u - 631);
}

TEST_F(LedgerTest, AuditFindsALostSample) {
  Fill(15);
  const Ledger::Result result = AuditAfter([](LedgerSnapshot* snapshot) {
    snapshot->set_samples(6, 127);
    snapshot->set_sample_digest(6, snapshot->sample_digest(6) - SampleFingerprint(11));
  });
  EXPECT_EQ(result.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(result.status.message()),
              HasSubstr("epoch 1: the 502 samples gathered are not the 503"));
  EXPECT_EQ(result.lost, 1u);
  EXPECT_EQ(result.doubled, 0u);
}

TEST_F(LedgerTest, AuditFindsADoubledSample) {
  Fill(15);
  const Ledger::Result result = AuditAfter([](LedgerSnapshot* snapshot) {
    snapshot->set_samples(13, 120);
    snapshot->set_sample_digest(13, snapshot->sample_digest(13) + SampleFingerprint(11));
  });
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("epoch 2: the 504 samples"));
  EXPECT_EQ(result.lost, 0u);
  EXPECT_EQ(result.doubled, 1u);
}

// The count is right, but one sample was taken in another's stead.
TEST_F(LedgerTest, AuditFindsASwappedSample) {
  Fill(15);
  const Ledger::Result result = AuditAfter([](LedgerSnapshot* snapshot) {
    snapshot->set_sample_digest(
        0, snapshot->sample_digest(0) - SampleFingerprint(11) + SampleFingerprint(12));
  });
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("epoch 0: the 503 samples"));
}

TEST_F(LedgerTest, AuditFindsAnEvaluationOfOtherSamples) {
  Fill(15);
  const Ledger::Result result =
      AuditAfter([](LedgerSnapshot* snapshot) { snapshot->set_sample_digest(9, 1); });
  EXPECT_EQ(result.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("evaluation after epoch 1"));
}

// ---------------------------------------------------------------- what it tells

TEST_F(LedgerTest, RecordsComeBackWithoutTheirTimes) {
  Fill(15);
  for (uint64_t i = 0; i < 15; ++i) {
    GlobalRecord wanted = records_[i];
    wanted.clear_compute_us();
    wanted.clear_all_reduce_us();
    EXPECT_EQ(ledger_.At(i).SerializeAsString(), wanted.SerializeAsString());
  }
}

TEST_F(LedgerTest, History) {
  RunHistory wanted;
  for (int i = 0; i < 7; ++i) wanted.Add(records_[i]);
  Fill(7);
  const RunHistory history = ledger_.History();
  ASSERT_EQ(history.epochs().size(), 2u);
  EXPECT_EQ(history.epochs()[0].loss, 0.5);
  EXPECT_EQ(history.epochs()[0].seconds, 0.5);
  EXPECT_TRUE(history.epochs()[0].evaluated);
  EXPECT_EQ(history.epochs()[1].steps, 2u);
  EXPECT_EQ(history.samples(), wanted.samples());
  ledger_.Resume(1, 5);
  EXPECT_EQ(ledger_.History().epochs().size(), 1u);
}

// ---------------------------------------------------------------- positions

TEST(PositionTest, ThereAndBack) {
  const Timeline timeline(4, 3);
  for (uint64_t at = 0; at <= timeline.end(); ++at) {
    const auto back = FromProto(timeline, ToProto(timeline, at));
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(*back, at);
  }
}

TEST(PositionTest, Forms) {
  const Timeline timeline(4, 3);
  const auto expect = [&](uint64_t at, uint32_t epoch, uint32_t step, Position::Phase phase) {
    const Position proto = ToProto(timeline, at);
    EXPECT_EQ(proto.epoch(), epoch) << at;
    EXPECT_EQ(proto.step(), step) << at;
    EXPECT_EQ(proto.phase(), phase) << at;
  };
  expect(0, 0, 0, Position::TRAIN);
  expect(3, 0, 3, Position::TRAIN);
  expect(4, 0, 4, Position::EVALUATE);
  expect(5, 1, 0, Position::TRAIN);
  expect(14, 2, 4, Position::EVALUATE);
  expect(15, 3, 0, Position::DONE);
}

TEST(PositionTest, Nonsense) {
  const Timeline timeline(4, 3);
  const auto from = [&](uint32_t epoch, uint32_t step, int phase) {
    Position position;
    position.set_epoch(epoch);
    position.set_step(step);
    position.set_phase(static_cast<Position::Phase>(phase));
    return FromProto(timeline, position);
  };
  EXPECT_EQ(from(1, 4, Position::TRAIN).value_or(0), 9u);  // a step ahead of the last
  EXPECT_EQ(from(7, 9, Position::DONE).value_or(0), 15u);
  const std::vector<std::vector<int>> bad = {{3, 0, Position::TRAIN},
                                             {0, 5, Position::TRAIN},
                                             {3, 4, Position::EVALUATE},
                                             {0, 3, Position::EVALUATE},
                                             {-1, 0, Position::TRAIN},
                                             {0, -1, Position::TRAIN},
                                             {0, 0, 7}};
  for (const auto& position : bad) {
    EXPECT_EQ(from(position[0], position[1], position[2]).status().code(),
              absl::StatusCode::kInvalidArgument)
        << position[0] << " " << position[1] << " " << position[2];
  }
}

}  // namespace
}  // namespace ringmaster
