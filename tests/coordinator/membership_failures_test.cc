// What breaks a generation, what does not, and how the run goes on.

#include "coordinator/membership.h"
#include "tests/coordinator/membership_fixture.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class MembershipFailuresTest : public MembershipTest {
 protected:
  void ExpectBroken(const std::string& reason) {
    ASSERT_EQ(broken_.size(), 1u);
    EXPECT_THAT(broken_[0].reason, HasSubstr(reason));
    EXPECT_EQ(aborts_, 1);
    EXPECT_EQ(membership_->phase(), Phase::kGathering);
  }
  // Three ranks that have finished a step.
  void TrainOn(CountRange nodes = {1, 3}) {
    Train(nodes);
    Progress();
  }
  // A generation that breaks as soon as it was formed: rank 2 is lost, and comes back.
  void LoseAndReturn(bool progress) {
    if (progress) Progress();
    const MemberId id = membership_->ranks()[2];
    Disconnect(id);
    After(absl::Milliseconds(50));
    if (membership_->phase() == Phase::kFailed) return;
    StandAll();
    Enter(MakeHello("b"));
    After(absl::Milliseconds(600));
  }
};

// ---------------------------------------------------------------- losses

TEST_F(MembershipFailuresTest, BrokenStreamIsALossAtOnce) {
  TrainOn();
  Disconnect(3);
  EXPECT_EQ(After(absl::Milliseconds(40)), Phase::kTraining);
  After(absl::Milliseconds(10));
  ExpectBroken("rank 1 of 3 (host a, pid 101) was lost: its stream broke");
  EXPECT_TRUE(broken_[0].progressed);
  EXPECT_EQ(broken_[0].noticed, now_);
  EXPECT_THAT(reason(), HasSubstr("generation 1 is over (rank 1 of 3"));
  EXPECT_FALSE(membership_->Contains(3));
  EXPECT_EQ(membership_->WhyGone(3), "it was lost: its stream broke");
  EXPECT_TRUE(membership_->MustAbort(1));
  EXPECT_FALSE(membership_->AllStand());
}

TEST_F(MembershipFailuresTest, SurvivorsGoOnInANewGeneration) {
  TrainOn();
  Disconnect(2);
  After(absl::Milliseconds(50));
  Stand(1);
  EXPECT_FALSE(membership_->MustAbort(1));
  EXPECT_TRUE(membership_->MustAbort(3));
  EXPECT_THAT(reason(), HasSubstr("its members are stopping"));
  first_ = 3;
  Stand(3);
  EXPECT_TRUE(membership_->AllStand());
  EXPECT_EQ(After(absl::Milliseconds(490)), Phase::kGathering);  // the lost one may be back soon
  EXPECT_EQ(After(absl::Milliseconds(10)), Phase::kTraining);
  EXPECT_EQ(membership_->generation(), 2u);
  EXPECT_THAT(membership_->ranks(), ElementsAre(3, 1));
  EXPECT_EQ(membership_->standing(1), std::nullopt);
  EXPECT_EQ(aborts_, 1);
}

// Its node is not whole any more, and nodes are what counts.
TEST_F(MembershipFailuresTest, RestOfANodeWaitsForItsLostProcess) {
  TrainOn();
  Disconnect(3);
  After(absl::Milliseconds(50));
  Regather();
  EXPECT_THAT(membership_->ranks(), ElementsAre(2));
  // It is taken in again when the node is whole.
  const MemberId again = Enter(MakeHello("a", 1, 2));
  EXPECT_THAT(regroups_, IsEmpty());
  After(absl::Milliseconds(500));
  EXPECT_THAT(regroups_, ElementsAre(2));
  StandAll();
  EXPECT_EQ(membership_->generation(), 3u);
  EXPECT_THAT(membership_->ranks(), ElementsAre(1, again, 2));
}

TEST_F(MembershipFailuresTest, WorkersGoOnWithoutTheRestOfTheirNode) {
  form_ = false;
  Wait({}, {1, 3});
  for (uint32_t i = 0; i < 3; ++i) Enter(MakeHello("a", i, 3));
  form_ = true;
  After(absl::Milliseconds(600));
  Disconnect(2);
  After(absl::Milliseconds(50));
  Regather();
  EXPECT_THAT(membership_->ranks(), ElementsAre(1, 3));
  Enter(MakeHello("a", 1, 3));
  After(absl::Milliseconds(500));
  StandAll();
  EXPECT_THAT(membership_->ranks(), ElementsAre(1, 4, 3));
}

TEST_F(MembershipFailuresTest, BelowTheMinimumTheRunWaits) {
  TrainOn({2, 2});
  Disconnect(2);
  After(absl::Milliseconds(50));
  StandAll();
  EXPECT_EQ(After(absl::Hours(1)), Phase::kGathering);
  EXPECT_EQ(reason(),
            "generation 1 is over (rank 2 of 3 (host b, pid 100) was lost: its stream broke): "
            "waiting for 2 nodes: 1 is here");
  Enter(MakeHello("c"));
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
  EXPECT_EQ(membership_->generation(), 2u);
}

TEST_F(MembershipFailuresTest, SilentMember) {
  TrainOn();
  silent_.insert(3);
  for (int i = 0; i < 30; ++i) {
    After(absl::Milliseconds(100));
    Progress();
  }
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
  After(absl::Milliseconds(10));
  ExpectBroken("rank 1 of 3 (host a, pid 101) has been silent for 3s");
}

TEST_F(MembershipFailuresTest, SecondLossWhileTheOthersStop) {
  TrainOn();
  Disconnect(2);
  After(absl::Milliseconds(50));
  Stand(1);
  Disconnect(3);
  After(absl::Milliseconds(600));
  EXPECT_EQ(membership_->phase(), Phase::kGathering);
  EXPECT_EQ(broken_.size(), 1u);  // of one generation that is over already
  EXPECT_FALSE(membership_->Contains(3));
}

TEST_F(MembershipFailuresTest, MemberThatAnswersAnAbortTooLateIsPutOut) {
  TrainOn();
  Disconnect(2);
  After(absl::Milliseconds(50));
  Stand(1);
  After(absl::Milliseconds(2990));
  EXPECT_TRUE(membership_->Contains(3));
  After(absl::Milliseconds(10));
  EXPECT_FALSE(membership_->Contains(3));
  EXPECT_EQ(membership_->WhyGone(3), "it did not stop when told to: it hangs");
  EXPECT_EQ(broken_.size(), 1u);
}

TEST_F(MembershipFailuresTest, NewProcessOfTheSamePlaceSupersedesTheFormer) {
  TrainOn();
  Hello hello = MakeHello("b");
  hello.set_incarnation(99);
  const auto joined = Join(hello);
  ASSERT_TRUE(joined.ok());
  EXPECT_FALSE(joined->recognised);
  ExpectBroken("rank 2 of 3 (host b, pid 100) was replaced by a new process");
  EXPECT_FALSE(membership_->Contains(2));
  EXPECT_THAT(membership_->WhyGone(2), HasSubstr("another process has taken its place"));
}

// Even where everybody is gone: that it ended is certain.
TEST_F(MembershipFailuresTest, NewProcessOfTheSamePlaceEndsTheGrace) {
  Wait({});
  Enter(MakeHello("a"));
  Progress();
  Disconnect(1);
  After(absl::Milliseconds(500));
  EXPECT_THAT(broken_, IsEmpty());
  Hello hello = MakeHello("a");
  hello.set_incarnation(99);
  Enter(hello);
  ASSERT_EQ(broken_.size(), 1u);
  EXPECT_THAT(broken_[0].reason, HasSubstr("rank 0 of 1 (host a, pid 100) was lost"));
  EXPECT_EQ(membership_->generation(), 2u);
}

TEST_F(MembershipFailuresTest, SupersededBeforeTrainingIsNoFailure) {
  Wait({2, 2});
  Enter(MakeHello("a"));
  Hello hello = MakeHello("a");
  hello.set_incarnation(99);
  EXPECT_EQ(Enter(hello), 2u);
  EXPECT_FALSE(membership_->Contains(1));
  EXPECT_EQ(reason(), "waiting for 2 nodes: 1 is here");
  EXPECT_THAT(broken_, IsEmpty());
}

// ---------------------------------------------------------------- the coordinator's own trouble

TEST_F(MembershipFailuresTest, AllStreamsGoneAndAllComeBack) {
  TrainOn();
  for (const MemberId id : {1, 2, 3}) Disconnect(id);
  After(absl::Seconds(4));
  EXPECT_THAT(reason(), HasSubstr("no worker answers: giving them 5s to come back"));
  for (const auto& [hello, id] :
       {std::pair{MakeHello("a", 0, 2), 1}, {MakeHello("a", 1, 2), 3}, {MakeHello("b"), 2}}) {
    const auto joined = Join(hello, 1);
    ASSERT_TRUE(joined.ok());
    EXPECT_TRUE(joined->recognised);
    EXPECT_EQ(joined->id, static_cast<MemberId>(id));
  }
  EXPECT_THAT(reason(), HasSubstr("all workers of generation 1 are back"));
  for (int i = 0; i < 100; ++i) {
    Progress();
    After(absl::Milliseconds(100));
  }
  EXPECT_EQ(membership_->generation(), 1u);
  EXPECT_THAT(broken_, IsEmpty());
}

TEST_F(MembershipFailuresTest, AllStreamsGoneAndSomeComeBack) {
  TrainOn();
  for (const MemberId id : {1, 2, 3}) Disconnect(id);
  After(absl::Seconds(1));
  EXPECT_TRUE(Join(MakeHello("a", 0, 2), 1)->recognised);
  EXPECT_TRUE(Join(MakeHello("a", 1, 2), 1)->recognised);
  After(absl::Milliseconds(3990));
  EXPECT_THAT(broken_, IsEmpty());
  After(absl::Milliseconds(20));
  ExpectBroken("rank 2 of 3 (host b, pid 100) was lost: its stream broke");
}

TEST_F(MembershipFailuresTest, AllStreamsGoneAndNobodyComesBack) {
  TrainOn();
  for (const MemberId id : {1, 2, 3}) Disconnect(id);
  After(absl::Milliseconds(4990));
  EXPECT_THAT(broken_, IsEmpty());
  After(absl::Milliseconds(20));
  ExpectBroken("rank 0 of 3");
  for (const MemberId id : {1, 2, 3}) EXPECT_FALSE(membership_->Contains(id));
  EXPECT_THAT(reason(), HasSubstr("waiting for 1 to 3 nodes: nobody is here"));
}

TEST_F(MembershipFailuresTest, AllSilentAndAllHeardAgain) {
  TrainOn();
  silent_ = {1, 2, 3};
  After(absl::Seconds(5));  // half a patience, and then less than the grace
  EXPECT_THAT(broken_, IsEmpty());
  silent_.clear();
  After(absl::Milliseconds(100));
  Progress();
  EXPECT_EQ(After(absl::Seconds(4)), Phase::kTraining);
  EXPECT_THAT(broken_, IsEmpty());
}

TEST_F(MembershipFailuresTest, AllSilentForGood) {
  TrainOn();
  silent_ = {1, 2, 3};
  After(absl::Milliseconds(6490));
  EXPECT_THAT(broken_, IsEmpty());
  After(absl::Milliseconds(50));
  ExpectBroken("rank 0 of 3 (host a, pid 100) has been silent for 6.5s");
}

// Streams that break one after another, within the time that a loss is looked at.
TEST_F(MembershipFailuresTest, StreamsThatBreakAlmostTogether) {
  TrainOn();
  Disconnect(1);
  After(absl::Milliseconds(30));
  Disconnect(2);
  Disconnect(3);
  After(absl::Seconds(1));
  EXPECT_THAT(broken_, IsEmpty());
}

TEST_F(MembershipFailuresTest, OurOwnPauseIsForgiven) {
  TrainOn();
  now_ += absl::Minutes(1);
  Decide();
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
  // Nobody is blamed for it, and nobody is spared either.
  silent_.insert(2);
  After(absl::Milliseconds(2900));
  EXPECT_THAT(broken_, IsEmpty());
  After(absl::Milliseconds(200));
  ExpectBroken("rank 2 of 3");
}

TEST_F(MembershipFailuresTest, PauseDuringTheGraceIsForgiven) {
  TrainOn();
  for (const MemberId id : {1, 2, 3}) Disconnect(id);
  After(absl::Seconds(1));
  now_ += absl::Minutes(1);
  Decide();
  EXPECT_THAT(broken_, IsEmpty());
  After(absl::Milliseconds(3900));
  EXPECT_THAT(broken_, IsEmpty());
  After(absl::Milliseconds(200));
  ExpectBroken("rank 0 of 3");
}

TEST_F(MembershipFailuresTest, PauseWhileMembersStopIsForgiven) {
  TrainOn();
  Disconnect(2);
  After(absl::Milliseconds(50));
  now_ += absl::Minutes(1);
  Decide();
  EXPECT_TRUE(membership_->Contains(1));
  EXPECT_TRUE(membership_->Contains(3));
}

// ---------------------------------------------------------------- coming back

TEST_F(MembershipFailuresTest, ReconnectionIsRecognised) {
  TrainOn();
  Disconnect(2);
  After(absl::Milliseconds(40));
  const auto joined = Join(MakeHello("b"), 1);
  ASSERT_TRUE(joined.ok());
  EXPECT_TRUE(joined->recognised);
  EXPECT_EQ(joined->id, 2u);
  EXPECT_EQ(After(absl::Seconds(2)), Phase::kTraining);
  EXPECT_THAT(broken_, IsEmpty());
}

// The network has dropped the old stream without telling us.
TEST_F(MembershipFailuresTest, ReconnectionBeforeTheFormerStreamEnds) {
  TrainOn();
  EXPECT_TRUE(Join(MakeHello("b"), 1)->recognised);
  EXPECT_THAT(broken_, IsEmpty());
}

TEST_F(MembershipFailuresTest, ReconnectionWithAnOldGenerationIsNoMember) {
  TrainOn();
  Disconnect(2);
  After(absl::Milliseconds(50));
  Regather();
  const auto joined = Join(MakeHello("b"), 1);
  ASSERT_TRUE(joined.ok());
  EXPECT_FALSE(joined->recognised);
}

TEST_F(MembershipFailuresTest, ReconnectionOfOneThatStoodBy) {
  TrainOn();
  Disconnect(2);
  After(absl::Milliseconds(50));
  Stand(1);
  Disconnect(1);
  EXPECT_FALSE(membership_->Contains(1));
  const auto joined = Join(MakeHello("a", 0, 2), 1);
  ASSERT_TRUE(joined.ok());
  EXPECT_FALSE(joined->recognised);
  EXPECT_EQ(membership_->standing(joined->id), std::nullopt);
}

TEST_F(MembershipFailuresTest, AbortIsToldAgainToWhoComesBackWithoutHavingHeard) {
  TrainOn();
  Disconnect(2);
  After(absl::Milliseconds(50));
  EXPECT_TRUE(Join(MakeHello("a", 1, 2), 1)->recognised);  // over a new stream
  EXPECT_TRUE(membership_->MustAbort(3));
}

// ---------------------------------------------------------------- trouble that members tell of

TEST_F(MembershipFailuresTest, BrokenCollectiveIsTheReasonIfNothingElseShowsUp) {
  TrainOn();
  Stand(1, "the all-reduce of step 7 failed");
  After(absl::Milliseconds(90));
  EXPECT_THAT(broken_, IsEmpty());
  After(absl::Milliseconds(10));
  ExpectBroken("rank 0 of 3 (host a, pid 100): the all-reduce of step 7 failed");
  EXPECT_FALSE(membership_->MustAbort(1));
  EXPECT_TRUE(membership_->MustAbort(2));
}

TEST_F(MembershipFailuresTest, BrokenCollectiveWaitsForItsCause) {
  TrainOn();
  Stand(1, "the all-reduce of step 7 failed");
  Stand(3, "the all-reduce of step 7 failed");
  After(absl::Milliseconds(30));
  Disconnect(2);
  After(absl::Milliseconds(50));
  ExpectBroken("rank 2 of 3 (host b, pid 100) was lost");
}

TEST_F(MembershipFailuresTest, FailureIsALoss) {
  TrainOn();
  Fail(2, absl::StatusCode::kInternal, "out of memory");
  ExpectBroken("rank 2 of 3 (host b, pid 100): out of memory");
  EXPECT_FALSE(membership_->Contains(2));
  EXPECT_EQ(membership_->WhyGone(2), "out of memory");
  Disconnect(2);  // its stream ends after it
  Regather();
  EXPECT_EQ(broken_.size(), 1u);
}

TEST_F(MembershipFailuresTest, FailureOfOneThatStoodByCountsOnce) {
  options_.max_failures = 1;
  TrainOn();
  Stand(2, "the all-reduce of step 7 failed");
  Fail(2, absl::StatusCode::kInternal, "out of memory");
  ExpectBroken("out of memory");
  Regather();
}

TEST_F(MembershipFailuresTest, FailureThatWouldHappenAgainEndsTheRun) {
  for (const auto code : {absl::StatusCode::kInvalidArgument, absl::StatusCode::kFailedPrecondition,
                          absl::StatusCode::kUnimplemented, absl::StatusCode::kOutOfRange}) {
    last_ = 0;
    TrainOn();
    Fail(2, code, "no such layer");
    EXPECT_EQ(membership_->phase(), Phase::kFailed);
    EXPECT_EQ(reason(), "rank 2 of 3 (host b, pid 100): no such layer");
  }
}

TEST_F(MembershipFailuresTest, FailureOfANewcomerDisturbsNobody) {
  options_.max_failures = 0;
  TrainOn();
  for (const auto code : {absl::StatusCode::kInternal, absl::StatusCode::kFailedPrecondition}) {
    const MemberId id = Join(MakeHello("c"))->id;
    Fail(id, code, "this GPU is too old");
    EXPECT_FALSE(membership_->Contains(id));
    EXPECT_EQ(After(absl::Seconds(1)), Phase::kTraining);
  }
  EXPECT_THAT(broken_, IsEmpty());
}

// ---------------------------------------------------------------- hangs

TEST_F(MembershipFailuresTest, FirstStepMayTakeLonger) {
  Train();  // 0.1 s ago
  After(absl::Seconds(59));
  EXPECT_THAT(broken_, IsEmpty());
  After(absl::Seconds(1));
  ExpectBroken("no step was finished for 1m");
  EXPECT_FALSE(broken_[0].progressed);
}

TEST_F(MembershipFailuresTest, NoProgressIsAHang) {
  Train();
  Progress(absl::Seconds(1));  // not below the least limit
  After(absl::Milliseconds(4990));
  EXPECT_THAT(broken_, IsEmpty());
  After(absl::Milliseconds(10));
  ExpectBroken("no step was finished for 5s");
  EXPECT_TRUE(broken_[0].progressed);
}

TEST_F(MembershipFailuresTest, SlowStepsAreNoHang) {
  Train();
  Progress(absl::Seconds(20));
  After(absl::Milliseconds(19990));
  EXPECT_THAT(broken_, IsEmpty());
  Progress(absl::Seconds(20));
  After(absl::Milliseconds(19990));
  EXPECT_THAT(broken_, IsEmpty());
  After(absl::Milliseconds(10));
  ExpectBroken("no step was finished for 20s");
}

// ---------------------------------------------------------------- agreed stops

TEST_F(MembershipFailuresTest, NewcomerIsTakenInAtAnAgreedStep) {
  TrainOn();
  const MemberId id = Enter(MakeHello("c"));
  After(absl::Milliseconds(490));
  EXPECT_THAT(regroups_, IsEmpty());  // more may come
  After(absl::Milliseconds(10));
  EXPECT_THAT(regroups_, ElementsAre(1));
  Progress();
  After(absl::Seconds(4));
  EXPECT_THAT(regroups_, ElementsAre(1));  // once
  Stand(1);
  Stand(2);
  EXPECT_EQ(membership_->phase(), Phase::kGathering);
  EXPECT_THAT(reason(), HasSubstr("all stopped at an agreed step"));
  EXPECT_FALSE(membership_->MustAbort(3));
  Stand(3);  // and at once
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
  EXPECT_EQ(membership_->generation(), 2u);
  EXPECT_THAT(membership_->ranks(), ElementsAre(1, 3, 2, id));
  EXPECT_THAT(broken_, IsEmpty());
  EXPECT_EQ(aborts_, 0);
}

TEST_F(MembershipFailuresTest, IncompleteNodeOfNewcomersWaits) {
  TrainOn();
  Enter(MakeHello("c", 0, 2));
  After(absl::Seconds(4));
  EXPECT_THAT(regroups_, IsEmpty());
}

// The request went down with the stream it was sent over.
TEST_F(MembershipFailuresTest, RegroupIsAskedForAgainAfterAReconnection) {
  TrainOn();
  Enter(MakeHello("c"));
  After(absl::Milliseconds(500));
  EXPECT_THAT(regroups_, ElementsAre(1));
  Disconnect(1);
  EXPECT_TRUE(Join(MakeHello("a", 0, 2), 1)->recognised);
  After(absl::Milliseconds(500));
  EXPECT_THAT(regroups_, ElementsAre(1, 1));
}

TEST_F(MembershipFailuresTest, InterruptionIsAskedForOnce) {
  TrainOn();
  membership_->RequestRegroup("the run is being interrupted");
  After(absl::Seconds(1));
  EXPECT_THAT(regroups_, ElementsAre(1));
  form_ = false;
  StandAll();
  EXPECT_EQ(membership_->phase(), Phase::kGathering);
  EXPECT_TRUE(membership_->AllStand());
  EXPECT_THAT(broken_, IsEmpty());
}

TEST_F(MembershipFailuresTest, MemberThatLeavesInGoodOrder) {
  TrainOn();
  membership_->Leaves(now_, 2);
  Decide();
  EXPECT_EQ(membership_->WhyGone(2), "it has left");
  EXPECT_THAT(reason(), HasSubstr("rank 2 of 3 (host b, pid 100) has left"));
  Disconnect(2);
  StandAll();
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
  EXPECT_EQ(membership_->generation(), 2u);
  EXPECT_THAT(membership_->ranks(), ElementsAre(1, 3));
  EXPECT_THAT(broken_, IsEmpty());
}

// The others wait in a collective for one that is dead.
TEST_F(MembershipFailuresTest, LossDuringAnAgreedStopIsAFailure) {
  TrainOn();
  Stand(1);
  Disconnect(2);
  ExpectBroken("rank 2 of 3 (host b, pid 100) was lost");
  EXPECT_TRUE(membership_->MustAbort(3));
}

TEST_F(MembershipFailuresTest, SilenceDuringAnAgreedStopIsAFailure) {
  TrainOn();
  Progress(absl::Seconds(20));
  silent_.insert(2);
  Stand(1);
  After(absl::Milliseconds(3010));
  ExpectBroken("rank 2 of 3 (host b, pid 100) fell silent");
}

TEST_F(MembershipFailuresTest, HangDuringAnAgreedStopIsAFailure) {
  TrainOn();
  Progress(absl::Seconds(20));
  Stand(1);
  Stand(2);
  After(absl::Milliseconds(19990));
  EXPECT_THAT(broken_, IsEmpty());
  After(absl::Milliseconds(10));
  ExpectBroken("a member did not stop at the agreed step");
  After(absl::Seconds(3));
  EXPECT_FALSE(membership_->Contains(3));
  EXPECT_EQ(membership_->WhyGone(3), "it did not stop when told to: it hangs");
}

// One rank stops at the step, another could not finish it: in whatever order we hear of it.
TEST_F(MembershipFailuresTest, CollectiveThatBreaksDuringAnAgreedStop) {
  for (const bool trouble_first : {true, false}) {
    last_ = 0;
    broken_.clear();
    aborts_ = 0;
    TrainOn();
    if (trouble_first) Stand(3, "the all-reduce of step 7 failed");
    Stand(1);
    if (!trouble_first) Stand(3, "the all-reduce of step 7 failed");
    After(absl::Milliseconds(90));
    EXPECT_THAT(broken_, IsEmpty());
    After(absl::Milliseconds(10));
    ExpectBroken("rank 1 of 3 (host a, pid 101): the all-reduce of step 7 failed");
  }
}

// ---------------------------------------------------------------- the budget

TEST_F(MembershipFailuresTest, NoFailureAllowed) {
  options_.max_failures = 0;
  Train();
  LoseAndReturn(true);
  EXPECT_EQ(membership_->phase(), Phase::kFailed);
  EXPECT_EQ(reason(), "rank 2 of 3 (host b, pid 100) was lost: its stream broke");
  EXPECT_EQ(broken_.size(), 1u);
}

TEST_F(MembershipFailuresTest, TwoFailuresAllowed) {
  options_.max_failures = 2;
  Train();
  LoseAndReturn(true);
  LoseAndReturn(true);
  ASSERT_EQ(membership_->phase(), Phase::kTraining);
  LoseAndReturn(true);
  EXPECT_EQ(membership_->phase(), Phase::kFailed);
  EXPECT_EQ(reason(),
            "more than 2 failures (--max-failures); the last: rank 2 of 3 (host b, pid 100) was "
            "lost: its stream broke");
}

TEST_F(MembershipFailuresTest, AnyNumberAllowedWithProgressBetween) {
  Train();
  for (int i = 0; i < 50; ++i) LoseAndReturn(true);
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
  EXPECT_EQ(broken_.size(), 50u);
}

TEST_F(MembershipFailuresTest, FruitlessFailuresInARow) {
  options_.fruitless_limit = 3;
  Train();
  LoseAndReturn(false);
  LoseAndReturn(false);
  LoseAndReturn(true);  // begins to count anew
  LoseAndReturn(false);
  ASSERT_EQ(membership_->phase(), Phase::kTraining);
  const MemberId id = membership_->ranks()[2];
  Fail(id, absl::StatusCode::kInternal, "out of memory");
  EXPECT_EQ(membership_->phase(), Phase::kFailed);
  EXPECT_EQ(reason(),
            "3 failures in a row without a step between them; the first: rank 2 of 3 (host b, pid "
            "100) was lost: its stream broke");
}

// A process that ends as soon as it has joined, again and again.
TEST_F(MembershipFailuresTest, FailuresBeforeTrainingAreFruitlessToo) {
  options_.fruitless_limit = 3;
  Wait({2, 2});
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(membership_->phase(), Phase::kGathering);
    Fail(Join(MakeHello("a"))->id, absl::StatusCode::kInternal, "out of memory");
  }
  EXPECT_EQ(membership_->phase(), Phase::kFailed);
  EXPECT_THAT(reason(), HasSubstr("a process of host a (pid 100): out of memory"));
}

// ---------------------------------------------------------------- a new coordinator

class RestoredMembershipTest : public MembershipFailuresTest {
 protected:
  // Generation 4 of two nodes may still be at work.
  void Restore(uint32_t failures = 0, uint32_t fruitless = 0, bool progressed = false) {
    Wait({1, 3});
    membership_->Restore(now_, 4, {MakeHello("a"), MakeHello("b")}, progressed, failures, fruitless,
                         "the first cause");
    last_ = 2;
    silent_ = {1, 2};
    Decide();
  }
};

TEST_F(RestoredMembershipTest, AllComeBack) {
  Restore();
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
  EXPECT_EQ(membership_->generation(), 4u);
  EXPECT_EQ(reason(),
            "the coordinator was started anew: waiting for the 2 workers of generation 4 to come "
            "back");
  After(absl::Seconds(4));
  EXPECT_EQ(Join(MakeHello("b"), 4)->id, 2u);
  EXPECT_TRUE(Join(MakeHello("a"), 4)->recognised);
  EXPECT_EQ(After(absl::Seconds(4)), Phase::kTraining);
  EXPECT_EQ(membership_->generation(), 4u);
  EXPECT_EQ(membership_->RankOf(2), 1u);
  EXPECT_THAT(broken_, IsEmpty());
}

TEST_F(RestoredMembershipTest, SomeComeBack) {
  Restore();
  EXPECT_TRUE(Join(MakeHello("a"), 4)->recognised);
  After(absl::Milliseconds(4990));
  EXPECT_THAT(broken_, IsEmpty());
  After(absl::Milliseconds(10));
  ExpectBroken(
      "rank 1 of 2 (host b, pid 100) did not come back after the coordinator was started anew");
  Stand(1);
  EXPECT_EQ(After(absl::Milliseconds(500)), Phase::kTraining);
  EXPECT_EQ(membership_->generation(), 5u);
}

TEST_F(RestoredMembershipTest, NobodyComesBack) {
  Restore();
  After(absl::Seconds(5));
  ExpectBroken("did not come back");
  EXPECT_THAT(reason(), HasSubstr("nobody is here"));
  Enter(MakeHello("a"));
  EXPECT_EQ(After(absl::Milliseconds(500)), Phase::kTraining);
}

// They were told to stop by the coordinator that died.
TEST_F(RestoredMembershipTest, WhoComesBackStoppedWaitsForTheOthers) {
  Restore();
  EXPECT_TRUE(Join(MakeHello("a"), 4)->recognised);
  Stand(1);
  After(absl::Seconds(2));
  EXPECT_EQ(membership_->generation(), 4u);
  EXPECT_TRUE(Join(MakeHello("b"), 4)->recognised);
  Stand(2);
  EXPECT_EQ(membership_->generation(), 5u);
  EXPECT_THAT(broken_, IsEmpty());
}

TEST_F(RestoredMembershipTest, NewProcessOfTheSamePlace) {
  Restore();
  After(absl::Milliseconds(100));
  Hello hello = MakeHello("b");
  hello.set_incarnation(99);
  Enter(hello, 4);
  ASSERT_EQ(broken_.size(), 1u);  // rank 1 has certainly ended
  EXPECT_FALSE(Join(MakeHello("b"), 3)->recognised);
}

TEST_F(RestoredMembershipTest, BudgetIsKept) {
  options_.max_failures = 3;
  Restore(3);
  After(absl::Seconds(5));
  EXPECT_EQ(membership_->phase(), Phase::kFailed);
  EXPECT_THAT(reason(), HasSubstr("more than 3 failures"));
}

TEST_F(RestoredMembershipTest, FruitlessFailuresAreKept) {
  Restore(9, 9);
  After(absl::Seconds(5));
  EXPECT_EQ(membership_->phase(), Phase::kFailed);
  EXPECT_THAT(reason(), HasSubstr("10 failures in a row"));
  EXPECT_THAT(reason(), HasSubstr("the first cause"));
}

TEST_F(RestoredMembershipTest, GenerationThatMadeStepsEndsARowOfFruitlessOnes) {
  Restore(9, 9, /*progressed=*/true);
  After(absl::Seconds(5));
  ExpectBroken("did not come back");
  EXPECT_EQ(membership_->phase(), Phase::kGathering);
}

// The former generation is known to be over: nothing is waited for but enough to begin with.
TEST_F(RestoredMembershipTest, NobodyIsAtWork) {
  Wait({1, 3});
  membership_->Restore(now_, 4, {}, false, 1, 0, "");
  Decide();
  EXPECT_EQ(reason(),
            "generation 4 is over (the coordinator was started anew): waiting for 1 to 3 nodes: "
            "nobody is here");
  EXPECT_EQ(Enter(MakeHello("a"), 4), 1u);
  EXPECT_EQ(After(absl::Milliseconds(490)), Phase::kGathering);  // more may come
  EXPECT_EQ(After(absl::Milliseconds(10)), Phase::kTraining);
  EXPECT_EQ(membership_->generation(), 5u);
}

// The state of the end was safe: nobody needs to come back for it.
TEST_F(RestoredMembershipTest, FinalStateIsSafe) {
  Wait({1, 3});
  membership_->Restore(now_, 4, {MakeHello("a"), MakeHello("b")}, false, 0, 0, "");
  membership_->FinalStateSafe("d1");
  Decide();
  EXPECT_EQ(membership_->phase(), Phase::kFinished);
  EXPECT_EQ(membership_->state_digest(), "d1");
}

}  // namespace
}  // namespace ringmaster
