#include "coordinator/recovery.h"

#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/planned_records.h"
#include "tests/coordinator/records.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

// Two epochs of two steps and an evaluation: six records.
class RecoveryTest : public ::testing::Test {
 protected:
  RecoveryTest() { ledger_.Resume(1, 0); }

  void Fill(uint64_t end) {
    while (ledger_.size() < end) ASSERT_TRUE(ledger_.Add(records_[ledger_.size()]).ok());
  }

  // A member that holds the state of `position`, and whose records begin at `records_from`.
  void AddMember(uint64_t generation, uint64_t position, uint64_t records_from,
                 const std::string& digest) {
    members_.push_back({++last_, StateOffer{generation, position, records_from, digest}});
  }
  void AddNewcomer() { members_.push_back({++last_, std::nullopt}); }
  void Store(uint64_t generation, uint64_t position, const std::string& digest) {
    stored_ = StateOffer{generation, position, position, digest};
  }

  void ExpectPlan(uint64_t position, const std::string& digest, std::optional<MemberId> holder,
                  bool must_serve) {
    const auto plan = PlanRecovery(ledger_, members_, stored_);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->position, position);
    EXPECT_EQ(plan->digest, digest);
    EXPECT_EQ(plan->holder, holder);
    EXPECT_EQ(plan->must_serve, must_serve);
  }

  void ExpectDataLoss(const std::string& message) {
    const auto plan = PlanRecovery(ledger_, members_, stored_);
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kDataLoss) << plan.status();
    EXPECT_THAT(std::string(plan.status().message()), HasSubstr(message));
  }

  const std::vector<GlobalRecord> records_ = PlannedRecords(SmallConfig(), 2);
  Ledger ledger_{SmallConfig()};
  std::vector<std::pair<MemberId, std::optional<StateOffer>>> members_;
  std::optional<StateOffer> stored_;
  MemberId last_ = 0;
};

TEST_F(RecoveryTest, FromTheBeginning) {
  AddNewcomer();
  AddNewcomer();
  ExpectPlan(0, "", std::nullopt, false);
}

TEST_F(RecoveryTest, AllHoldTheSame) {
  Fill(3);
  AddMember(1, 3, 2, "d3");
  AddMember(1, 3, 0, "d3");
  ExpectPlan(3, "d3", 1, false);
}

// A finished all-reduce holds every contribution: one rank may be a step ahead.
TEST_F(RecoveryTest, SurvivorsOneStepApart) {
  Fill(2);
  AddMember(1, 2, 0, "d2");
  AddMember(1, 3, 1, "d3");
  AddMember(1, 3, 2, "d3");
  ExpectPlan(3, "d3", 2, true);
}

TEST_F(RecoveryTest, NewcomerTakesTheSurvivorsState) {
  Fill(2);
  AddNewcomer();
  AddMember(1, 2, 1, "d2");
  ExpectPlan(2, "d2", 2, true);
}

TEST_F(RecoveryTest, CoordinatorHoldsTheBest) {
  Fill(4);
  Store(1, 3, "d3");
  AddNewcomer();
  AddMember(1, 2, 2, "d2");
  ExpectPlan(3, "d3", std::nullopt, true);
}

TEST_F(RecoveryTest, SurvivorsAreAheadOfTheCoordinator) {
  Fill(4);
  Store(1, 3, "d3");
  AddMember(1, 4, 3, "d4");
  ExpectPlan(4, "d4", 1, false);
}

// Both have it: the member that does becomes rank 0 and need not fetch it.
TEST_F(RecoveryTest, CoordinatorAndAMemberHoldTheSame) {
  Fill(3);
  Store(1, 3, "d3");
  AddNewcomer();
  AddMember(1, 3, 3, "d3");
  ExpectPlan(3, "d3", 2, true);
}

// The only one who had the records between is gone: what comes after them is of no use.
TEST_F(RecoveryTest, StateWhoseRecordsAreMissing) {
  Fill(2);
  AddMember(1, 4, 3, "d4");
  ExpectPlan(0, "", std::nullopt, false);
  Store(1, 2, "d2");
  ExpectPlan(2, "d2", std::nullopt, true);
  AddMember(1, 4, 2, "d4");
  ExpectPlan(4, "d4", 2, false);
}

TEST_F(RecoveryTest, StoredStateAheadOfTheRecords) {
  Fill(2);
  Store(1, 3, "d3");
  stored_->records_from = 0;  // the coordinator has no records but those of the ledger
  AddNewcomer();
  ExpectPlan(0, "", std::nullopt, false);
}

TEST_F(RecoveryTest, StateOfALostLineage) {
  Fill(4);
  ledger_.Resume(2, 3);
  Fill(5);
  AddMember(1, 4, 0, "d4");  // came back late; generation 2 did this step anew
  AddMember(2, 5, 4, "d5");
  ExpectPlan(5, "d5", 2, true);
  // Where the generations met, both are right.
  members_[0].second = StateOffer{1, 3, 3, "d3"};
  members_.pop_back();
  ExpectPlan(3, "d3", 1, false);
  Store(1, 4, "other");
  ExpectPlan(3, "d3", 1, false);
}

TEST_F(RecoveryTest, GenerationNobodyKnows) {
  Fill(2);
  AddMember(9, 2, 0, "d2");
  ExpectPlan(0, "", std::nullopt, false);
}

TEST_F(RecoveryTest, StateWithoutADigestIsNone) {
  Fill(2);
  AddMember(1, 2, 0, "");
  ExpectPlan(0, "", std::nullopt, false);
}

TEST_F(RecoveryTest, DifferentStatesOfOnePosition) {
  Fill(3);
  AddMember(1, 3, 3, "d3");
  AddMember(1, 3, 3, "d4");
  ExpectDataLoss("two states of epoch 1, step 0 differ: d3 and d4");
}

TEST_F(RecoveryTest, MemberThatDiffersFromTheCheckpoint) {
  Fill(3);
  Store(1, 3, "d3");
  AddMember(1, 3, 3, "other");
  ExpectDataLoss("d3 and other");
}

// Whoever is ahead of both, and in whatever order they come.
TEST_F(RecoveryTest, DifferentStatesBehindTheBest) {
  Fill(3);
  AddMember(1, 3, 2, "d3");
  AddMember(1, 2, 2, "d2");
  AddMember(1, 2, 2, "other");
  ExpectDataLoss("evaluation after epoch 0");
  std::swap(members_[0], members_[2]);
  ExpectDataLoss("evaluation after epoch 0");
}

// Begun from a checkpoint there is no initial state to fall back on.
TEST_F(RecoveryTest, BegunFromACheckpoint) {
  ledger_ = Ledger(SmallConfig(), 3);
  AddNewcomer();
  EXPECT_EQ(PlanRecovery(ledger_, members_, stored_).status().code(),
            absl::StatusCode::kFailedPrecondition);
  Store(0, 3, "d3");
  ExpectPlan(3, "d3", std::nullopt, true);
}

TEST_F(RecoveryTest, AtTheEnd) {
  Fill(6);
  AddMember(1, 6, 6, "d6");
  AddNewcomer();
  ExpectPlan(6, "d6", 1, true);
}

}  // namespace
}  // namespace ringmaster
