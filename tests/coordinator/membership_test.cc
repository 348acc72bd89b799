// Who may join, when a generation begins, and how a run ends well.

#include "coordinator/membership.h"

#include "tests/coordinator/membership_fixture.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// ---------------------------------------------------------------- forming

TEST_F(MembershipTest, ExactNumberOfNodesFormsAtOnce) {
  Wait({2, 2});
  EXPECT_EQ(reason(), "waiting for 2 nodes: nobody is here");
  Enter(MakeHello("a"));
  EXPECT_EQ(After(absl::Seconds(30)), Phase::kGathering);
  EXPECT_EQ(reason(), "waiting for 2 nodes: 1 is here");
  Enter(MakeHello("b"));
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
  EXPECT_EQ(membership_->generation(), 1u);
  EXPECT_EQ(reason(), "generation 1 trains with 2 workers on 2 nodes");
}

TEST_F(MembershipTest, OneNodeIsTheDefault) {
  Wait({});
  Enter(MakeHello("a"));
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
  EXPECT_EQ(reason(), "generation 1 trains with 1 worker on 1 node");
}

// Whoever has joined may still be busy ending what it was at.
TEST_F(MembershipTest, OnlyThoseWhoStandByCount) {
  Wait({});
  ASSERT_TRUE(Join(MakeHello("a")).ok());
  EXPECT_EQ(After(absl::Seconds(5)), Phase::kGathering);
  EXPECT_EQ(reason(), "waiting for 1 node: 0 of 1 processes of host a so far");
  Stand(1);
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
}

TEST_F(MembershipTest, NodeCountsOnceAllItsProcessesAreThere) {
  Wait({1, 1});
  Enter(MakeHello("a", 2, 3));
  Enter(MakeHello("a", 0, 3));
  EXPECT_EQ(After(absl::Seconds(5)), Phase::kGathering);
  EXPECT_EQ(reason(), "waiting for 1 node: 2 of 3 processes of host a so far");
  Enter(MakeHello("a", 1, 3));
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
  EXPECT_THAT(membership_->ranks(), ElementsAre(2, 3, 1));
}

TEST_F(MembershipTest, RanksFollowNodesThenLocalRanks) {
  Train();
  EXPECT_THAT(membership_->ranks(), ElementsAre(1, 3, 2));
  EXPECT_EQ(membership_->RankOf(3), 1u);
  EXPECT_EQ(membership_->RankOf(7), std::nullopt);
  EXPECT_EQ(membership_->Describe(2), "rank 2 of 3 (host b, pid 100)");
  EXPECT_EQ(membership_->Describe(7), "a former member");
}

// Who holds the state sends the records; its node stays together.
TEST_F(MembershipTest, RankZeroCanBeChosen) {
  Wait({3, 3});
  Enter(MakeHello("a"));
  Enter(MakeHello("b", 0, 2));
  Enter(MakeHello("c"));
  first_ = 4;
  Enter(MakeHello("b", 1, 2));
  EXPECT_THAT(membership_->ranks(), ElementsAre(4, 2, 1, 3));
  EXPECT_EQ(membership_->RankOf(4), 0u);
  EXPECT_EQ(reason(), "generation 1 trains with 4 workers on 3 nodes");
}

TEST_F(MembershipTest, RangeSettlesAfterTheLastOne) {
  Wait({2, 5});
  Enter(MakeHello("a"));
  Enter(MakeHello("b"));
  EXPECT_EQ(After(absl::Milliseconds(490)), Phase::kGathering);
  EXPECT_THAT(reason(), HasSubstr("more than the 2 that are here"));
  Enter(MakeHello("c"));
  EXPECT_EQ(After(absl::Milliseconds(490)), Phase::kGathering);
  EXPECT_EQ(After(absl::Milliseconds(10)), Phase::kTraining);
  EXPECT_EQ(membership_->ranks().size(), 3u);
}

TEST_F(MembershipTest, RangeIsFullAtItsMaximum) {
  Wait({1, 2});
  Enter(MakeHello("a"));
  Enter(MakeHello("b"));
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
}

TEST_F(MembershipTest, RangeWaitsForAnIncompleteNode) {
  Wait({1, kAny});
  EXPECT_EQ(reason(), "waiting for at least 1 node: nobody is here");
  Enter(MakeHello("a"));
  const MemberId half = Enter(MakeHello("b", 0, 2));
  EXPECT_EQ(After(absl::Seconds(2)), Phase::kGathering);
  Disconnect(half);
  EXPECT_EQ(After(absl::Milliseconds(500)), Phase::kTraining);
  EXPECT_THAT(membership_->ranks(), ElementsAre(1));
}

TEST_F(MembershipTest, WorkersCountProcesses) {
  Wait({}, {3, 3});
  EXPECT_EQ(reason(), "waiting for 3 workers: nobody is here");
  Enter(MakeHello("a", 0, 2));
  Enter(MakeHello("a", 1, 2));
  EXPECT_EQ(reason(), "waiting for 3 workers: 2 are here");
  Enter(MakeHello("b"));
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
}

TEST_F(MembershipTest, GoingBeforeTrainingIsNoFailure) {
  Wait({2, 2});
  const MemberId id = Enter(MakeHello("a"));
  Disconnect(id);
  EXPECT_FALSE(membership_->Contains(id));
  EXPECT_EQ(membership_->WhyGone(id), "was lost: its stream broke");
  membership_->Leaves(now_, Enter(MakeHello("b")));
  EXPECT_EQ(After(absl::Seconds(1)), Phase::kGathering);
  EXPECT_EQ(reason(), "waiting for 2 nodes: nobody is here");
  EXPECT_THAT(broken_, IsEmpty());
}

TEST_F(MembershipTest, SilentBeforeTrainingIsForgotten) {
  Wait({2, 2});
  const MemberId id = Enter(MakeHello("a"));
  silent_.insert(id);
  After(absl::Seconds(3));
  EXPECT_TRUE(membership_->Contains(id));
  After(absl::Milliseconds(10));
  EXPECT_FALSE(membership_->Contains(id));
  EXPECT_EQ(membership_->phase(), Phase::kGathering);
}

TEST_F(MembershipTest, JoinTimeout) {
  Wait({}, {3, 3});
  Enter(MakeHello("a"));
  Enter(MakeHello("b", 0, 2));
  EXPECT_EQ(After(absl::Milliseconds(59990)), Phase::kGathering);
  EXPECT_EQ(After(absl::Milliseconds(10)), Phase::kFailed);
  EXPECT_EQ(reason(), "waited 1m for 3 workers: 1 is here, and 1 of 2 processes of host b");
}

// ---------------------------------------------------------------- refusals

TEST_F(MembershipTest, MalformedHello) {
  Wait({5, 5});
  Hello hello = MakeHello("a");
  hello.clear_node_id();
  ExpectRefused(hello, absl::StatusCode::kInvalidArgument, "node_id");
  hello = MakeHello("a");
  hello.clear_device();
  ExpectRefused(hello, absl::StatusCode::kInvalidArgument, "device");
  ExpectRefused(MakeHello("a", 0, 0), absl::StatusCode::kInvalidArgument, "local rank 0 of 0");
  ExpectRefused(MakeHello("a", 2, 2), absl::StatusCode::kInvalidArgument, "local rank 2 of 2");
  ExpectRefused(MakeHello("a", 0, 4097), absl::StatusCode::kInvalidArgument, "4097");
  hello = MakeHello("a");
  hello.set_host(std::string(1025, 'x'));
  ExpectRefused(hello, absl::StatusCode::kInvalidArgument, "1025 bytes");
  EXPECT_EQ(reason(), "waiting for 5 nodes: nobody is here");
}

TEST_F(MembershipTest, OtherVersionOrData) {
  Wait({2, 2});
  Hello hello = MakeHello("a");
  hello.set_version("1.1");
  ExpectRefused(hello, absl::StatusCode::kFailedPrecondition, "version 1.0, this process has 1.1");
  hello = MakeHello("a");
  hello.set_data_digest("abd");
  ExpectRefused(hello, absl::StatusCode::kFailedPrecondition, "data set abc, this process has abd");
}

TEST_F(MembershipTest, OtherKindOfDevice) {
  Wait({2, 2});
  Enter(MakeHello("a"));
  Hello hello = MakeHello("b");
  hello.set_device(CUDA);
  ExpectRefused(hello, absl::StatusCode::kFailedPrecondition,
                "computes on CUDA, a process of host a (pid 100) on CPU");
}

TEST_F(MembershipTest, NodeThatContradictsItself) {
  Wait({2, 2});
  Enter(MakeHello("a", 1, 2));
  ExpectRefused(MakeHello("a", 0, 3), absl::StatusCode::kInvalidArgument,
                "announced 2 processes before, now 3");
}

TEST_F(MembershipTest, NoRoomForMoreWorkers) {
  Wait({}, {2, 3});
  Enter(MakeHello("a", 0, 2));
  ExpectRefused(MakeHello("b", 0, 2), absl::StatusCode::kResourceExhausted,
                "the run takes 2 to 3 workers; 2 joined before, this node brings 2 workers");
  Enter(MakeHello("c"));
  // Its place was counted with the first of its processes.
  Enter(MakeHello("a", 1, 2));
  EXPECT_EQ(membership_->ranks().size(), 3u);
  ExpectRefused(MakeHello("d"), absl::StatusCode::kResourceExhausted, "3 joined before");
}

TEST_F(MembershipTest, NoRoomForMoreNodes) {
  Train({2, 2});
  ExpectRefused(MakeHello("c"), absl::StatusCode::kResourceExhausted,
                "the run takes 2 nodes; 2 joined before, this node brings 1 node");
}

TEST_F(MembershipTest, WorldHasALimit) {
  Wait({1, kAny});
  Enter(MakeHello("a", 0, 4096));
  ExpectRefused(MakeHello("b"), absl::StatusCode::kResourceExhausted, "at most 4096");
}

TEST_F(MembershipTest, RunThatIsOver) {
  Train();
  membership_->Fail("enough");
  ExpectRefused(MakeHello("c"), absl::StatusCode::kFailedPrecondition, "the run is over: enough");
}

TEST_F(MembershipTest, StrangersChangeNothing) {
  Train();
  membership_->Heard(now_, 9);
  membership_->Stands(now_, 9, MakeStanding(1, "x"));
  membership_->Finished(9, "d");
  membership_->Leaves(now_, 9);
  Fail(9, absl::StatusCode::kInvalidArgument, "x");
  Disconnect(9);
  EXPECT_EQ(After(absl::Seconds(1)), Phase::kTraining);
}

// ---------------------------------------------------------------- generation numbers

// Where the disk took less than it promised, a process knows of a later generation.
TEST_F(MembershipTest, NumbersGrowPastThoseThatProcessesTellOf) {
  Wait({1, 2});
  Enter(MakeHello("a"), 7);
  After(absl::Milliseconds(500));
  EXPECT_EQ(membership_->generation(), 8u);
  Enter(MakeHello("b"), 5);
  After(absl::Milliseconds(500));
  StandAll();
  EXPECT_EQ(membership_->generation(), 9u);
}

TEST_F(MembershipTest, NumbersThatAreNone) {
  Train();
  ExpectRefused(MakeHello("c"), absl::StatusCode::kInvalidArgument, "of generation 1844",
                std::numeric_limits<uint64_t>::max());
  ExpectRefused(MakeHello("c"), absl::StatusCode::kInvalidArgument, "that is at 1", 1'000'002);
  Enter(MakeHello("c"), 1'000'001);
}

// ---------------------------------------------------------------- finishing

TEST_F(MembershipTest, AllFinish) {
  Train();
  membership_->FinalStateSafe("d1");
  membership_->Finished(1, "d1");
  membership_->Finished(2, "d1");
  EXPECT_EQ(After(absl::Seconds(1)), Phase::kTraining);
  EXPECT_EQ(membership_->state_digest(), "");
  membership_->Finished(3, "d1");
  Decide();
  EXPECT_EQ(membership_->phase(), Phase::kFinished);
  EXPECT_EQ(membership_->state_digest(), "d1");
  EXPECT_EQ(reason(), "all 3 workers finished");
  Disconnect(1);
  EXPECT_EQ(membership_->phase(), Phase::kFinished);
}

TEST_F(MembershipTest, FinalStateMustBeSafe) {
  Train();
  for (const MemberId id : {1, 2, 3}) membership_->Finished(id, "d1");
  EXPECT_EQ(After(absl::Seconds(1)), Phase::kTraining);
  membership_->FinalStateSafe("d1");
  Decide();
  EXPECT_EQ(membership_->phase(), Phase::kFinished);
}

TEST_F(MembershipTest, DifferentWeightsAreAFailure) {
  Train();
  membership_->Finished(1, "d1");
  membership_->Finished(2, "d1");
  membership_->Finished(3, "d2");
  Decide();
  EXPECT_EQ(membership_->phase(), Phase::kFailed);
  EXPECT_EQ(reason(), "the ranks ended with different weights (ranks 0, 2: d1; rank 1: d2)");
}

TEST_F(MembershipTest, OtherStateThanHandedIn) {
  Train();
  membership_->FinalStateSafe("d1");
  membership_->Finished(1, "d2");
  Decide();
  EXPECT_EQ(membership_->phase(), Phase::kFailed);
  EXPECT_EQ(reason(), "the workers finished with state d2, but handed in d1");
}

// It has nothing to add any more.
TEST_F(MembershipTest, MemberThatIsGoneWhenTheFinalStateIsSafe) {
  Train();
  membership_->FinalStateSafe("d1");
  membership_->Finished(1, "d1");
  membership_->Finished(2, "d1");
  Disconnect(3);
  EXPECT_EQ(membership_->phase(), Phase::kFinished);
  EXPECT_THAT(broken_, IsEmpty());
}

TEST_F(MembershipTest, MemberThatIsGoneBeforeTheFinalStateIsSafe) {
  Train();
  for (const MemberId id : {1, 2, 3}) membership_->Finished(id, "d1");
  Disconnect(1);
  After(absl::Milliseconds(50));
  ASSERT_EQ(broken_.size(), 1u);
  membership_->FinalStateSafe("d1");
  Regather();
  // What was finished counts for its own generation only.
  EXPECT_EQ(After(absl::Seconds(1)), Phase::kTraining);
  membership_->Finished(2, "d1");
  Decide();
  EXPECT_EQ(membership_->phase(), Phase::kFinished);
}

}  // namespace
}  // namespace ringmaster
