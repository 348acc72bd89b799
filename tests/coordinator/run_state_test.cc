#include "coordinator/run_state.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/planned_records.h"
#include "tests/coordinator/records.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

JournalEntry Started() {
  JournalEntry entry;
  entry.mutable_started()->set_incarnation(42);
  return entry;
}

JournalEntry Formed(uint64_t generation, uint64_t position, int members = 2) {
  JournalEntry entry;
  entry.mutable_formed()->set_generation(generation);
  entry.mutable_formed()->set_position(position);
  for (int i = 0; i < members; ++i) {
    Hello* hello = entry.mutable_formed()->add_members();
    hello->set_incarnation(100 * generation + i);
    hello->set_host("a");
    hello->set_pid(1000 + i);
    hello->set_device(CPU);
  }
  return entry;
}

JournalEntry Verified(uint64_t generation, uint64_t position) {
  JournalEntry entry;
  entry.mutable_verified()->set_generation(generation);
  entry.mutable_verified()->set_position(position);
  return entry;
}

JournalEntry Broken(uint64_t generation, bool progressed, const std::string& reason) {
  JournalEntry entry;
  entry.mutable_broken()->set_generation(generation);
  entry.mutable_broken()->set_progressed(progressed);
  entry.mutable_broken()->set_reason(reason);
  return entry;
}

JournalEntry Recovered(double seconds) {
  JournalEntry entry;
  entry.mutable_recovered()->set_seconds(seconds);
  return entry;
}

JournalEntry Ended(RunEnded::Outcome outcome) {
  JournalEntry entry;
  entry.mutable_ended()->set_outcome(outcome);
  entry.mutable_ended()->set_reason("because");
  return entry;
}

// Two epochs of two steps and an evaluation: six records.
class RunStateTest : public ::testing::Test {
 protected:
  JournalEntry Records(uint64_t first, uint64_t end) const {
    JournalEntry entry;
    for (uint64_t i = first; i < end; ++i) *entry.mutable_records()->add_records() = records_[i];
    return entry;
  }

  void Apply(const JournalEntry& entry) {
    const absl::Status status = state_.Apply(entry);
    ASSERT_TRUE(status.ok()) << status << "\n" << entry.ShortDebugString();
  }

  void ExpectRefused(const JournalEntry& entry, const std::string& message) {
    const absl::Status status = state_.Apply(entry);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }

  const std::vector<GlobalRecord> records_ = PlannedRecords(SmallConfig(), 2);
  RunState state_{"run-1", "1.0", SmallConfig(), absl::FromUnixSeconds(1700000000)};
};

TEST_F(RunStateTest, New) {
  EXPECT_EQ(state_.run_id(), "run-1");
  EXPECT_EQ(state_.generation().generation(), 0u);
  EXPECT_EQ(state_.coordinator_starts(), 0u);
  EXPECT_FALSE(state_.ended().has_value());
  EXPECT_FALSE(state_.broken());
}

TEST_F(RunStateTest, RunThroughAFailure) {
  Apply(Started());
  Apply(Formed(1, 0));
  Apply(Records(0, 4));
  Apply(Broken(1, true, "rank 1 was lost"));
  EXPECT_TRUE(state_.broken());
  EXPECT_EQ(state_.failures(), 1u);
  Apply(Formed(3, 3, 1));
  EXPECT_FALSE(state_.broken());
  EXPECT_EQ(state_.generation().members_size(), 1);
  EXPECT_EQ(state_.ledger().redone(), 1u);
  Apply(Records(3, 6));
  Apply(Recovered(0.75));
  Apply(Ended(RunEnded::SUCCESS));
  EXPECT_EQ(state_.ledger().committed(), 6u);

  RunReport report;
  FillReport(state_, &report);
  EXPECT_EQ(report.run_id, "run-1");
  EXPECT_EQ(report.version, "1.0");
  EXPECT_EQ(report.generations, 3u);
  EXPECT_EQ(report.world_size, 1u);
  EXPECT_EQ(report.device, CPU);
  ASSERT_EQ(report.members.size(), 1u);
  EXPECT_EQ(report.members[0].incarnation(), 300u);
  EXPECT_EQ(report.members[0].pid(), 1000);
  EXPECT_EQ(report.failures_survived, 1u);
  EXPECT_EQ(report.coordinator_starts, 1u);
  EXPECT_EQ(report.records_redone, 1u);
  EXPECT_EQ(report.samples_committed, 6u);
  EXPECT_EQ(report.samples_expected, 6u);
  EXPECT_EQ(report.history.steps(), 4u);
  EXPECT_THAT(report.recoveries_seconds, ElementsAre(0.75));
}

TEST_F(RunStateTest, CheckpointCommitsWhatItHolds) {
  Apply(Formed(1, 0));
  Apply(Records(0, 4));
  Apply(Verified(1, 3));
  EXPECT_EQ(state_.ledger().committed(), 3u);
  Apply(Formed(2, 3));
  Apply(Verified(1, 4));  // was under way when its lineage was lost
  EXPECT_EQ(state_.ledger().committed(), 3u);
}

TEST_F(RunStateTest, FruitlessFailuresInARow) {
  Apply(Formed(1, 0));
  Apply(Broken(1, false, "first"));
  Apply(Formed(2, 0));
  Apply(Broken(2, false, "second"));
  EXPECT_EQ(state_.fruitless_failures(), 2u);
  EXPECT_EQ(state_.first_cause(), "first");
  Apply(Formed(3, 0));
  Apply(Broken(3, true, "third"));
  EXPECT_EQ(state_.fruitless_failures(), 1u);
  EXPECT_EQ(state_.first_cause(), "third");
  EXPECT_EQ(state_.failures(), 3u);
}

TEST_F(RunStateTest, InterruptedAndFailedRunsCanBeGoneOnWith) {
  for (const auto outcome : {RunEnded::INTERRUPTED, RunEnded::FAILED}) {
    const uint64_t next = state_.generation().generation() + 1;
    Apply(Formed(next, 0));
    Apply(Broken(next, false, "x"));
    Apply(Ended(outcome));
    EXPECT_EQ(state_.ended()->outcome(), outcome);
    EXPECT_EQ(state_.ended()->reason(), "because");
    Apply(Started());
    EXPECT_FALSE(state_.ended().has_value());
    EXPECT_EQ(state_.fruitless_failures(), 0u);
  }
  Apply(Ended(RunEnded::SUCCESS));
  Apply(Started());
  EXPECT_TRUE(state_.ended().has_value());
}

TEST_F(RunStateTest, EntriesThatCannotFollow) {
  Apply(Formed(2, 0));
  Apply(Records(0, 2));
  ExpectRefused(Formed(2, 2), "generation 2 after 2");
  ExpectRefused(Formed(1, 2), "generation 1 after 2");
  ExpectRefused(Formed(3, 7), "goes on at 7");
  ExpectRefused(Broken(1, true, "x"), "generation 1 failed, but the last one is 2");
  ExpectRefused(Records(3, 4), "records between are missing");
  ExpectRefused(state_.Snapshot(), "cannot be here");
  ExpectRefused(JournalEntry(), "cannot be here");
  EXPECT_EQ(state_.ledger().size(), 2u);
  EXPECT_EQ(state_.failures(), 0u);
}

TEST_F(RunStateTest, BrokenBeforeTheFirstGeneration) {
  ExpectRefused(Broken(0, false, "x"), "the last one is 0");
}

TEST_F(RunStateTest, RecordOfOtherSamples) {
  Apply(Formed(1, 0));
  JournalEntry entry = Records(0, 1);
  entry.mutable_records()->mutable_records(0)->set_sample_digest(1);
  EXPECT_EQ(state_.Apply(entry).code(), absl::StatusCode::kDataLoss);
}

TEST_F(RunStateTest, BegunFromACheckpoint) {
  state_ = RunState("run-2", "1.0", SmallConfig(), absl::FromUnixSeconds(1700000000), 3);
  ExpectRefused(Formed(1, 2), "in a run from 3 to 6");
  Apply(Formed(1, 3));
  Apply(Records(3, 6));
  EXPECT_TRUE(state_.ledger().complete());
}

TEST_F(RunStateTest, WhatIsNoSnapshot) {
  const auto expect_refused = [](const JournalEntry& entry) {
    EXPECT_EQ(RunState::FromSnapshot(entry).status().code(), absl::StatusCode::kInvalidArgument);
  };
  expect_refused(JournalEntry());
  expect_refused(Started());
  JournalEntry entry = state_.Snapshot();
  entry.mutable_snapshot()->clear_run_id();
  expect_refused(entry);
  entry = state_.Snapshot();
  entry.mutable_snapshot()->mutable_config()->set_global_batch(0);
  expect_refused(entry);
  entry = state_.Snapshot();
  entry.mutable_snapshot()->mutable_config()->set_num_train_samples(0);
  expect_refused(entry);
  entry = state_.Snapshot();
  entry.mutable_snapshot()->mutable_config()->set_epochs(0);
  expect_refused(entry);
  entry = state_.Snapshot();
  entry.mutable_snapshot()->mutable_ledger()->set_committed(1);
  expect_refused(entry);
}

// ---------------------------------------------------------------- any history

// Entries as a coordinator could write them, in an order that chance decides.
class Chance {
 public:
  Chance(uint32_t seed, const std::vector<GlobalRecord>& records)
      : random_(seed), records_(records) {}

  JournalEntry Next(const RunState& state) {
    const uint64_t generation = state.generation().generation();
    const uint64_t size = state.ledger().size();
    for (;;) {
      switch (Below(8)) {
        case 0:
          return Started();
        case 1:  // some behind, some ahead of the records
          return Formed(generation + 1 + Below(3), Below(records_.size() + 1), 1 + Below(3));
        case 2:
          if (generation == 0) break;
          return Broken(generation, Below(2) == 0, std::to_string(Below(1000)));
        case 3:
          return Verified(generation, Below(records_.size() + 1));
        case 4:
          return Recovered(0.125 * Below(100));
        case 5:
          return Ended(static_cast<RunEnded::Outcome>(Below(3)));
        default: {  // also such as came before
          JournalEntry entry;
          entry.mutable_records();
          const uint64_t first = size - std::min<uint64_t>(size, Below(2));
          for (uint64_t i = first; i < std::min(size + 2, records_.size()); ++i) {
            *entry.mutable_records()->add_records() = records_[i];
          }
          return entry;
        }
      }
    }
  }

 private:
  int Below(uint64_t end) { return static_cast<int>(random_() % end); }

  std::mt19937 random_;
  const std::vector<GlobalRecord>& records_;
};

// A coordinator that takes up the journal at any place, and goes on, has the same state as one that
// never died.
TEST_F(RunStateTest, SnapshotAtAnyPlaceIsTheSameAsApplyingAll) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    Chance chance(seed, records_);
    RunState lived("run-1", "1.0", SmallConfig(), absl::FromUnixSeconds(1700000000));
    RunState restarted = lived;
    for (int i = 0; i < 40; ++i) {
      const JournalEntry entry = chance.Next(lived);
      ASSERT_TRUE(lived.Apply(entry).ok()) << seed << " " << entry.ShortDebugString();
      ASSERT_TRUE(restarted.Apply(entry).ok()) << seed << " " << entry.ShortDebugString();
      JournalEntry parsed;
      ASSERT_TRUE(parsed.ParseFromString(restarted.Snapshot().SerializeAsString()));
      const auto back = RunState::FromSnapshot(parsed);
      ASSERT_TRUE(back.ok()) << back.status();
      restarted = *back;
      ASSERT_EQ(restarted.Snapshot().ShortDebugString(), lived.Snapshot().ShortDebugString())
          << seed << " " << i;
      ASSERT_EQ(restarted.ledger().samples(), lived.ledger().samples());
      ASSERT_EQ(restarted.broken(), lived.broken());
      ASSERT_EQ(restarted.started(), lived.started());
      for (uint64_t at = 0; at <= records_.size(); ++at) {
        for (uint64_t from = 0; from <= lived.generation().generation(); ++from) {
          ASSERT_EQ(restarted.ledger().lineage().Contains(from, at),
                    lived.ledger().lineage().Contains(from, at))
              << seed << " " << from << " " << at;
        }
      }
    }
  }
}

}  // namespace
}  // namespace ringmaster
