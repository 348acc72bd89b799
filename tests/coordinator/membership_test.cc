#include "coordinator/membership.h"

#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Phase = Membership::Phase;

constexpr int kAny = std::numeric_limits<int>::max();

Hello MakeHello(const std::string& node, uint32_t local_rank = 0, uint32_t local_world_size = 1) {
  Hello hello;
  hello.set_incarnation(std::hash<std::string>()(node) + local_rank);
  hello.set_node_id(node + "-1234");
  hello.set_host(node);
  hello.set_pid(static_cast<int32_t>(100 + local_rank));
  hello.set_local_rank(local_rank);
  hello.set_local_world_size(local_world_size);
  hello.set_device(CPU);
  hello.set_version("1.0");
  hello.set_data_digest("abc");
  return hello;
}

class MembershipTest : public ::testing::Test {
 protected:
  void Wait(CountRange nodes, CountRange workers = {}) {
    MembershipOptions options;
    options.nodes = nodes;
    options.workers = workers;
    options.version = "1.0";
    options.data_digest = "abc";
    options.join_timeout = absl::Seconds(60);
    membership_.emplace(options, now_);
  }

  // Everybody who is there shows a sign of life as time goes on, but for `silent`.
  Phase After(absl::Duration time, MemberId silent = 0) {
    const absl::Time end = now_ + time;
    do {
      now_ = std::min(end, now_ + absl::Milliseconds(100));
      for (MemberId id = 1; id <= last_; ++id) {
        if (id != silent) membership_->Heard(now_, id);
      }
      membership_->Decide(now_);
    } while (now_ < end);
    return membership_->phase();
  }

  absl::Status Join(const Hello& hello) {
    const absl::Status status = membership_->Join(now_, last_ + 1, hello);
    if (status.ok()) ++last_;
    membership_->Decide(now_);
    return status;
  }

  void ExpectRefused(const Hello& hello, absl::StatusCode code, const std::string& message) {
    const absl::Status status = Join(hello);
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }

  // Three ranks in training: node a with two processes, node b with one.
  void Train() {
    Wait({2, 2});
    ASSERT_TRUE(Join(MakeHello("a", 0, 2)).ok());
    ASSERT_TRUE(Join(MakeHello("b")).ok());
    ASSERT_TRUE(Join(MakeHello("a", 1, 2)).ok());
    ASSERT_EQ(membership_->phase(), Phase::kTraining);
  }

  static Failure MakeFailure(const std::string& message, bool consequence) {
    Failure failure;
    failure.set_message(message);
    failure.set_consequence(consequence);
    return failure;
  }

  absl::Time now_ = absl::FromUnixSeconds(1700000000);
  MemberId last_ = 0;
  std::optional<Membership> membership_;
};

// ---------------------------------------------------------------- forming

TEST_F(MembershipTest, ExactNumberOfNodesFormsAtOnce) {
  Wait({2, 2});
  EXPECT_EQ(membership_->reason(), "waiting for 2 nodes: nobody is here");
  ASSERT_TRUE(Join(MakeHello("a")).ok());
  EXPECT_EQ(After(absl::Seconds(30)), Phase::kWaiting);
  EXPECT_EQ(membership_->reason(), "waiting for 2 nodes: 1 is here");
  ASSERT_TRUE(Join(MakeHello("b")).ok());
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
  EXPECT_EQ(membership_->generation(), 1u);
  EXPECT_EQ(membership_->reason(), "generation 1 trains with 2 workers on 2 nodes");
}

TEST_F(MembershipTest, OneNodeIsTheDefault) {
  Wait({});
  ASSERT_TRUE(Join(MakeHello("a")).ok());
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
}

TEST_F(MembershipTest, NodeCountsOnceAllItsProcessesAreThere) {
  Wait({1, 1});
  ASSERT_TRUE(Join(MakeHello("a", 2, 3)).ok());
  ASSERT_TRUE(Join(MakeHello("a", 0, 3)).ok());
  EXPECT_EQ(After(absl::Seconds(5)), Phase::kWaiting);
  EXPECT_EQ(membership_->reason(), "waiting for 1 node: 2 of 3 processes of host a so far");
  ASSERT_TRUE(Join(MakeHello("a", 1, 3)).ok());
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
  EXPECT_THAT(membership_->ranks(), ElementsAre(2, 3, 1));
}

TEST_F(MembershipTest, RanksFollowNodesThenLocalRanks) {
  Train();
  EXPECT_THAT(membership_->ranks(), ElementsAre(1, 3, 2));
  EXPECT_EQ(membership_->RankOf(3), 1u);
  EXPECT_EQ(membership_->RankOf(7), std::nullopt);
  EXPECT_EQ(membership_->Describe(2), "rank 2 of 3 (host b, pid 100)");
}

TEST_F(MembershipTest, RangeSettlesAfterTheLastJoin) {
  Wait({2, 5});
  ASSERT_TRUE(Join(MakeHello("a")).ok());
  ASSERT_TRUE(Join(MakeHello("b")).ok());
  EXPECT_EQ(After(absl::Milliseconds(400)), Phase::kWaiting);
  EXPECT_THAT(membership_->reason(), HasSubstr("more than the 2 that are here"));
  ASSERT_TRUE(Join(MakeHello("c")).ok());
  EXPECT_EQ(After(absl::Milliseconds(400)), Phase::kWaiting);
  EXPECT_EQ(After(absl::Milliseconds(100)), Phase::kTraining);
  EXPECT_EQ(membership_->ranks().size(), 3u);
}

TEST_F(MembershipTest, RangeIsFullAtItsMaximum) {
  Wait({1, 2});
  ASSERT_TRUE(Join(MakeHello("a")).ok());
  ASSERT_TRUE(Join(MakeHello("b")).ok());
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
}

TEST_F(MembershipTest, RangeWaitsForAnIncompleteNode) {
  Wait({1, kAny});
  EXPECT_EQ(membership_->reason(), "waiting for at least 1 node: nobody is here");
  ASSERT_TRUE(Join(MakeHello("a")).ok());
  ASSERT_TRUE(Join(MakeHello("b", 0, 2)).ok());
  EXPECT_EQ(After(absl::Seconds(2)), Phase::kWaiting);
  membership_->Lost(2, "went");
  EXPECT_EQ(After(absl::Milliseconds(100)), Phase::kTraining);
  EXPECT_THAT(membership_->ranks(), ElementsAre(1));
}

TEST_F(MembershipTest, WorkersCountProcesses) {
  Wait({}, {3, 3});
  EXPECT_EQ(membership_->reason(), "waiting for 3 workers: nobody is here");
  ASSERT_TRUE(Join(MakeHello("a", 0, 2)).ok());
  ASSERT_TRUE(Join(MakeHello("a", 1, 2)).ok());
  EXPECT_EQ(membership_->reason(), "waiting for 3 workers: 2 are here");
  ASSERT_TRUE(Join(MakeHello("b")).ok());
  EXPECT_EQ(membership_->phase(), Phase::kTraining);
}

TEST_F(MembershipTest, LeavingBeforeTrainingIsNoFailure) {
  Wait({2, 2});
  ASSERT_TRUE(Join(MakeHello("a")).ok());
  membership_->Lost(1, "went");
  EXPECT_FALSE(membership_->Contains(1));
  ASSERT_TRUE(Join(MakeHello("b")).ok());
  membership_->Failed(now_, 2, MakeFailure("no memory", false));
  EXPECT_EQ(After(absl::Seconds(1)), Phase::kWaiting);
  EXPECT_EQ(membership_->reason(), "waiting for 2 nodes: nobody is here");
}

TEST_F(MembershipTest, SilentBeforeTrainingIsForgotten) {
  Wait({2, 2});
  ASSERT_TRUE(Join(MakeHello("a")).ok());
  EXPECT_EQ(After(absl::Seconds(3), 1), Phase::kWaiting);
  EXPECT_TRUE(membership_->Contains(1));
  EXPECT_EQ(After(absl::Milliseconds(100), 1), Phase::kWaiting);
  EXPECT_FALSE(membership_->Contains(1));
}

TEST_F(MembershipTest, JoinTimeout) {
  Wait({}, {3, 3});
  ASSERT_TRUE(Join(MakeHello("a")).ok());
  ASSERT_TRUE(Join(MakeHello("b", 0, 2)).ok());
  EXPECT_EQ(After(absl::Milliseconds(59900)), Phase::kWaiting);
  EXPECT_EQ(After(absl::Milliseconds(100)), Phase::kFailed);
  EXPECT_EQ(membership_->reason(),
            "waited 1m for 3 workers: 1 is here, and 1 of 2 processes of host b");
}

TEST_F(MembershipTest, NoTimeoutOnceTraining) {
  Train();
  EXPECT_EQ(After(absl::Minutes(10)), Phase::kTraining);
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
  EXPECT_EQ(membership_->reason(), "waiting for 5 nodes: nobody is here");
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
  ASSERT_TRUE(Join(MakeHello("a")).ok());
  Hello hello = MakeHello("b");
  hello.set_device(CUDA);
  ExpectRefused(hello, absl::StatusCode::kFailedPrecondition,
                "computes on CUDA, a process of host a (pid 100) on CPU");
}

TEST_F(MembershipTest, DuplicateLocalRank) {
  Wait({2, 2});
  ASSERT_TRUE(Join(MakeHello("a", 1, 2)).ok());
  Hello hello = MakeHello("a", 1, 2);
  hello.set_incarnation(99);
  ExpectRefused(hello, absl::StatusCode::kInvalidArgument, "local rank 1 of node a-1234");
  ExpectRefused(MakeHello("a", 0, 3), absl::StatusCode::kInvalidArgument,
                "announced 2 processes before, now 3");
}

TEST_F(MembershipTest, SameProcessMayComeBackWhenItsFormerSessionHasEnded) {
  Wait({2, 2});
  ASSERT_TRUE(Join(MakeHello("a")).ok());
  ExpectRefused(MakeHello("a"), absl::StatusCode::kUnavailable, "former session");
  membership_->Lost(1, "went");
  EXPECT_TRUE(Join(MakeHello("a")).ok());
}

TEST_F(MembershipTest, NoRoom) {
  Wait({}, {2, 3});
  ASSERT_TRUE(Join(MakeHello("a", 0, 2)).ok());
  ExpectRefused(MakeHello("b", 0, 2), absl::StatusCode::kResourceExhausted,
                "the run takes 2 to 3 workers; 2 joined before, this node brings 2 workers");
  EXPECT_TRUE(Join(MakeHello("c")).ok());
  // Its place was counted with the first of its processes.
  EXPECT_TRUE(Join(MakeHello("a", 1, 2)).ok());
}

TEST_F(MembershipTest, WorldHasALimit) {
  Wait({1, kAny});
  ASSERT_TRUE(Join(MakeHello("a", 0, 4096)).ok());
  ExpectRefused(MakeHello("b"), absl::StatusCode::kResourceExhausted, "at most 4096");
}

TEST_F(MembershipTest, LateComer) {
  Train();
  ExpectRefused(MakeHello("c"), absl::StatusCode::kResourceExhausted,
                "the run has all its members: generation 1");
  membership_->Lost(1, "was lost");
  ExpectRefused(MakeHello("c"), absl::StatusCode::kFailedPrecondition, "the run is over");
}

// ---------------------------------------------------------------- failing

TEST_F(MembershipTest, LostMemberEndsTheRun) {
  Train();
  membership_->Lost(3, "was lost: its stream broke");
  EXPECT_EQ(membership_->phase(), Phase::kFailed);
  EXPECT_EQ(membership_->reason(), "rank 1 of 3 (host a, pid 101) was lost: its stream broke");
}

TEST_F(MembershipTest, FailureIsTheCause) {
  Train();
  membership_->Failed(now_, 2, MakeFailure("step 5: out of memory", false));
  EXPECT_EQ(membership_->phase(), Phase::kFailed);
  EXPECT_EQ(membership_->reason(), "rank 2 of 3 (host b, pid 100): step 5: out of memory");
}

TEST_F(MembershipTest, FirstFailureStays) {
  Train();
  membership_->Failed(now_, 2, MakeFailure("the cause", false));
  membership_->Failed(now_, 1, MakeFailure("another", false));
  membership_->Lost(3, "was lost");
  EXPECT_THAT(membership_->reason(), HasSubstr("the cause"));
}

TEST_F(MembershipTest, ConsequenceWaitsForItsCause) {
  Train();
  membership_->Failed(now_, 1, MakeFailure("a peer is gone", true));
  membership_->Lost(1, "was lost: its stream broke");  // it has said why
  EXPECT_EQ(After(absl::Seconds(1)), Phase::kTraining);
  membership_->Lost(3, "was lost: its stream broke");
  EXPECT_EQ(membership_->phase(), Phase::kFailed);
  EXPECT_THAT(membership_->reason(), HasSubstr("rank 1 of 3"));
}

TEST_F(MembershipTest, ConsequenceWithoutACauseIsTheReason) {
  Train();
  membership_->Failed(now_, 1, MakeFailure("a peer is gone", true));
  membership_->Failed(now_, 2, MakeFailure("me too", true));
  EXPECT_EQ(After(absl::Milliseconds(3200)), Phase::kTraining);
  EXPECT_EQ(After(absl::Milliseconds(100)), Phase::kFailed);
  EXPECT_EQ(membership_->reason(), "rank 0 of 3 (host a, pid 100): a peer is gone");
}

TEST_F(MembershipTest, SilentMemberEndsTheRun) {
  Train();
  EXPECT_EQ(After(absl::Seconds(3), 3), Phase::kTraining);
  EXPECT_EQ(After(absl::Milliseconds(100), 3), Phase::kFailed);
  EXPECT_THAT(membership_->reason(),
              HasSubstr("rank 1 of 3 (host a, pid 101) has been silent for 3.1s"));
}

// Others notice that a host has gone before its heartbeats are missed.
TEST_F(MembershipTest, SilentMemberIsNamedBeforeThoseWhoWaitedForIt) {
  Train();
  membership_->Failed(now_, 1, MakeFailure("a peer is gone", true));
  EXPECT_EQ(After(absl::Milliseconds(3100), 2), Phase::kFailed);
  EXPECT_THAT(membership_->reason(), HasSubstr("rank 2 of 3 (host b, pid 100) has been silent"));
}

// It was us who were stopped: nobody is blamed for it, and nobody is spared either.
TEST_F(MembershipTest, OurOwnPauseIsForgiven) {
  Train();
  now_ += absl::Minutes(1);
  EXPECT_EQ(membership_->Decide(now_), Phase::kTraining);
  EXPECT_EQ(After(absl::Milliseconds(2900), 2), Phase::kTraining);
  EXPECT_EQ(After(absl::Milliseconds(200), 2), Phase::kFailed);
  EXPECT_THAT(membership_->reason(), HasSubstr("rank 2 of 3"));
}

// ---------------------------------------------------------------- finishing

TEST_F(MembershipTest, AllFinish) {
  Train();
  membership_->Finished(1, "d1");
  membership_->Finished(2, "d1");
  EXPECT_EQ(After(absl::Seconds(1)), Phase::kTraining);
  EXPECT_EQ(membership_->state_digest(), "");
  membership_->Finished(3, "d1");
  EXPECT_EQ(membership_->Decide(now_), Phase::kFinished);
  EXPECT_EQ(membership_->state_digest(), "d1");
  membership_->Lost(1, "was lost");
  EXPECT_EQ(membership_->Decide(now_), Phase::kFinished);
}

TEST_F(MembershipTest, DifferentWeightsAreAFailure) {
  Train();
  membership_->Finished(1, "d1");
  membership_->Finished(2, "d1");
  membership_->Finished(3, "d2");
  EXPECT_EQ(membership_->Decide(now_), Phase::kFailed);
  EXPECT_EQ(membership_->reason(),
            "the ranks ended with different weights (ranks 0, 2: d1; rank 1: d2)");
}

TEST_F(MembershipTest, LostAfterItFinishedIsStillLost) {
  Train();
  membership_->Finished(2, "d1");
  membership_->Lost(2, "was lost");
  EXPECT_EQ(membership_->Decide(now_), Phase::kFailed);
}

TEST_F(MembershipTest, StrangersChangeNothing) {
  Train();
  membership_->Heard(now_, 9);
  membership_->Finished(9, "d");
  membership_->Failed(now_, 9, MakeFailure("x", false));
  membership_->Lost(9, "was lost");
  EXPECT_EQ(After(absl::Seconds(1)), Phase::kTraining);
}

}  // namespace
}  // namespace ringmaster
