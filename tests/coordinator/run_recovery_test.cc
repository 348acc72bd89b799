// A run through failures: lost workers, a journal that cannot be written, a coordinator that goes
// on where another died.

#include "coordinator/run.h"
#include "tests/coordinator/led_run.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class RunRecoveryTest : public RunTest {
 protected:
  // Whether GetState would find the state now.
  bool CanServe(const StoredStatePtr& state) {
    bool come = false;
    const KeyValueTable::Ticket ticket =
        run_->keys().Get(run_->status().generation(), ringmaster::Run::StateKey(state->digest),
                         [&come](const absl::StatusOr<std::string>& value) { come = value.ok(); });
    run_->keys().Cancel(ticket);  // who still waits would answer into a frame that is gone
    return come && run_->states().Find(state->digest) != nullptr;
  }
  // Rank 1 is lost for good, after `records` records came.
  void LoseRankOne(uint64_t records) {
    SendRecords(0, records);
    Close(1);
    After(absl::Milliseconds(100));
    ASSERT_TRUE(peers_[0]->last().has_abort());
  }
  // Both are lost, and the grace is over.
  void LoseAll() {
    Close(0);
    Close(1);
    for (int i = 0; i < 102; ++i) Advance(absl::Milliseconds(50));
    ASSERT_EQ(run_->status().phase(), RunStatus::RECOVERING);
  }
};

// ---------------------------------------------------------------- losses

TEST_F(RunRecoveryTest, SurvivorGoesOn) {
  Train();
  LoseRankOne(1);
  EXPECT_EQ(run_->status().phase(), RunStatus::RECOVERING);
  EXPECT_THAT(peers_[0]->last().abort().reason(),
              HasSubstr("rank 1 of 2 (host a, pid 1001) was lost"));
  EXPECT_EQ(run_->status().failures_survived(), 1u);
  Stand(0, 1, 1, 2, 1);
  After(absl::Milliseconds(550));
  EXPECT_EQ(run_->status().phase(), RunStatus::TRAINING);
  const Assignment& assignment = peers_[0]->assignment();
  EXPECT_EQ(peers_[0]->last().generation(), 2u);
  EXPECT_EQ(assignment.world_size(), 1u);
  EXPECT_EQ(assignment.position().phase(), Position::EVALUATE);
  EXPECT_EQ(assignment.state_digest(), StoredAt(1, 2)->digest);
  EXPECT_EQ(assignment.records_received(), 1u);  // it sends the one between
  EXPECT_FALSE(assignment.hand_in_state());      // nobody else needs it

  SendRecords(1, 6, 0, 2);
  EXPECT_TRUE(SendState(2, 6).ok());
  SendFinished(0, SmallState(4), 2);
  EXPECT_EQ(run_->status().phase(), RunStatus::FINISHED);
  EXPECT_EQ(Report()["samples_committed"], 6);
  EXPECT_EQ(Report()["generations"], 2);
  EXPECT_EQ(Report()["failures_survived"], 1);
  EXPECT_EQ(run_->state().ledger().redone(), 0u);
}

// From the failure to the first step after it; what came late of the steps before is no recovery.
TEST_F(RunRecoveryTest, RecoverySeconds) {
  Train();
  LoseRankOne(1);
  SendRecords(1, 2);
  EXPECT_THAT(run_->state().recoveries_seconds(), IsEmpty());
  Stand(0, 1, 1, 3, 2);
  After(absl::Milliseconds(550));
  SendRecords(2, 3, 0, 2);
  EXPECT_THAT(run_->state().recoveries_seconds(), IsEmpty());
  After(absl::Milliseconds(350));
  SendRecords(3, 4, 0, 2);
  EXPECT_THAT(run_->state().recoveries_seconds(), ElementsAre(::testing::DoubleNear(0.95, 0.06)));
  SendRecords(4, 5, 0, 2);
  EXPECT_EQ(run_->state().recoveries_seconds().size(), 1u);
}

TEST_F(RunRecoveryTest, ProcessThatTakesThePlaceFetchesTheState) {
  Train({2, 2});
  LoseRankOne(2);
  Stand(0, 1, 1, 2, 2);
  After(absl::Seconds(10));
  EXPECT_EQ(run_->status().phase(), RunStatus::RECOVERING);
  EXPECT_THAT(run_->status().reason(), HasSubstr("waiting for 2 workers: 1 is here"));
  WorkerMessage hello = HelloMessage(1, 2);
  hello.mutable_hello()->set_incarnation(99);
  const size_t peer = Greet(hello);
  EXPECT_EQ(peers_[peer]->last().welcome().records_received(), 2u);
  WorkerMessage message = Message(0);
  message.mutable_standing();
  Say(peer, message);
  EXPECT_EQ(run_->status().generation(), 2u);
  EXPECT_TRUE(peers_[0]->assignment().hand_in_state());
  EXPECT_FALSE(peers_[peer]->assignment().hand_in_state());
  EXPECT_FALSE(CanServe(StoredAt(1, 2)));
  EXPECT_TRUE(SendState(2, 2).ok());
  EXPECT_TRUE(CanServe(StoredAt(1, 2)));
}

// The coordinator has the state already, as a checkpoint: nobody needs to hand it in.
TEST_F(RunRecoveryTest, StateThatIsHereIsNotAskedFor) {
  Train({2, 2});
  SendRecords(0, 2);
  EXPECT_TRUE(SendState(1, 2).ok());
  Close(1);
  After(absl::Milliseconds(100));
  Stand(0, 1, 1, 2, 2);
  Enter(1);
  EXPECT_EQ(run_->status().generation(), 2u);
  EXPECT_FALSE(peers_[0]->assignment().hand_in_state());
  EXPECT_TRUE(CanServe(StoredAt(1, 2)));
}

TEST_F(RunRecoveryTest, RankWithTheMostBecomesRankZero) {
  Train();
  SendRecords(0, 1);
  Stand(0, 1, 1, 1, 1, "the all-reduce of step 1 failed");
  Stand(1, 1, 1, 2, 0);
  After(absl::Milliseconds(700));
  EXPECT_EQ(run_->status().generation(), 2u);
  EXPECT_EQ(peers_[1]->assignment().rank(), 0u);
  EXPECT_TRUE(peers_[1]->assignment().hand_in_state());
  EXPECT_EQ(peers_[0]->assignment().rank(), 1u);
  SendRecords(1, 2, 1, 2);
  EXPECT_EQ(peers_[1]->acknowledged(), 2u);
}

TEST_F(RunRecoveryTest, EverybodyLostGoesOnFromTheStateThatIsHere) {
  Train();
  SendRecords(0, 5);
  EXPECT_TRUE(SendState(1, 3).ok());
  LoseAll();
  Enter(0);
  Enter(1);
  EXPECT_EQ(run_->status().generation(), 2u);
  EXPECT_EQ(peers_[2]->assignment().position().epoch(), 1u);
  EXPECT_EQ(peers_[2]->assignment().state_digest(), StoredAt(1, 3)->digest);
  EXPECT_EQ(peers_[2]->assignment().records_received(), 3u);
  EXPECT_TRUE(CanServe(StoredAt(1, 3)));
  EXPECT_EQ(run_->state().ledger().redone(), 2u);
  EXPECT_EQ(run_->status().samples_committed(), 3u);
  SendRecords(3, 6, 2, 2);
  EXPECT_EQ(run_->status().samples_committed(), 6u);
  // What was under way of the lost lineage comes too late.
  EXPECT_FALSE(run_->OnLineage(1, 4));
  EXPECT_TRUE(run_->OnLineage(1, 3));
  EXPECT_TRUE(run_->OnLineage(2, 4));
}

TEST_F(RunRecoveryTest, EverybodyLostWithoutAnyState) {
  Train();
  SendRecords(0, 2);
  LoseAll();
  Enter(0);
  Enter(1);
  EXPECT_EQ(peers_[3]->assignment().state_digest(), "");
  EXPECT_EQ(peers_[3]->assignment().position().phase(), Position::TRAIN);
  EXPECT_EQ(peers_[3]->assignment().position().step(), 0u);
  EXPECT_EQ(run_->state().ledger().redone(), 2u);
  EXPECT_EQ(run_->status().samples_committed(), 0u);
}

// States whose records never came have taken its place in the store, but it is what counts.
TEST_F(RunRecoveryTest, StateToGoOnFromIsAlwaysServed) {
  Train();
  SendRecords(0, 3);
  EXPECT_TRUE(SendState(1, 3).ok());
  EXPECT_TRUE(SendState(1, 4).ok());
  EXPECT_TRUE(SendState(1, 5).ok());
  LoseAll();
  Enter(0);
  Enter(1);
  EXPECT_EQ(peers_[2]->assignment().state_digest(), StoredAt(1, 3)->digest);
  EXPECT_TRUE(CanServe(StoredAt(1, 3)));
}

TEST_F(RunRecoveryTest, NewcomerIsTakenInAtAnAgreedStep) {
  StartRun({1, 3});
  Enter(0);
  Enter(1);
  After(absl::Milliseconds(550));
  ASSERT_EQ(run_->status().generation(), 1u);
  WorkerMessage hello = HelloMessage(0, 1);
  hello.mutable_hello()->set_node_id("b-1");
  const size_t peer = Greet(hello);
  WorkerMessage message = Message(0);
  message.mutable_standing();
  Say(peer, message);
  After(absl::Milliseconds(550));
  EXPECT_EQ(peers_[0]->Count(CoordinatorMessage::kRegroup), 1);
  EXPECT_EQ(peers_[1]->Count(CoordinatorMessage::kRegroup), 0);
  SendRecords(0, 2);
  Stand(0, 1, 1, 2, 2);
  Stand(1, 1, 1, 2, 0);
  EXPECT_EQ(run_->status().generation(), 2u);
  EXPECT_EQ(peers_[peer]->assignment().world_size(), 3u);
  EXPECT_EQ(peers_[peer]->assignment().rank(), 2u);
  EXPECT_EQ(run_->status().failures_survived(), 0u);
  EXPECT_EQ(peers_[0]->Count(CoordinatorMessage::kAbort), 0);
}

TEST_F(RunRecoveryTest, LeaverIsLetGo) {
  Train();
  SendRecords(0, 2);
  WorkerMessage message = Message();
  message.mutable_leaving()->set_reason("SIGTERM");
  Say(1, message);
  ExpectClosed(1, absl::StatusCode::kAborted, "it has left");
  Stand(0, 1, 1, 2, 2);
  EXPECT_EQ(run_->status().generation(), 2u);
  EXPECT_EQ(run_->status().failures_survived(), 0u);
}

TEST_F(RunRecoveryTest, FailureComesBeforeTheStreamsEnd) {
  Train();
  WorkerMessage message = Message();
  message.mutable_failure()->set_code(static_cast<int>(absl::StatusCode::kInternal));
  message.mutable_failure()->set_message("out of memory");
  Say(1, message);
  Close(1);
  EXPECT_THAT(run_->status().reason(), HasSubstr("rank 1 of 2 (host a, pid 1001): out of memory"));
  EXPECT_EQ(run_->status().failures_survived(), 1u);
}

TEST_F(RunRecoveryTest, NoFailureAllowed) {
  options_.membership.max_failures = 0;
  Train();
  Close(1);
  After(absl::Milliseconds(100));
  EXPECT_TRUE(peers_[0]->last().has_end());
  ExpectFailed("rank 1 of 2 (host a, pid 1001) was lost");
}

// ---------------------------------------------------------------- streams that break

TEST_F(RunRecoveryTest, ReconnectionGoesOnAsIfNothingHadBeen) {
  Train();
  SendRecords(0, 2);
  Close(0);
  const size_t peer = Return(0, 1);
  EXPECT_TRUE(peers_[peer]->sent[0].welcome().recognised());
  EXPECT_EQ(peers_[peer]->sent[0].welcome().records_received(), 2u);
  SendRecords(2, 3, peer);
  EXPECT_EQ(peers_[peer]->acknowledged(), 3u);
  After(absl::Seconds(1));
  EXPECT_EQ(run_->status().generation(), 1u);
  EXPECT_EQ(run_->status().failures_survived(), 0u);
}

// The network has dropped the former stream without telling us: its end must not count.
TEST_F(RunRecoveryTest, NewerStreamTakesThePlaceOfTheFormer) {
  Train();
  const size_t peer = Return(0, 1);
  EXPECT_TRUE(peers_[peer]->sent[0].welcome().recognised());
  ExpectClosed(0, absl::StatusCode::kAborted, "a newer stream");
  Close(0);
  After(absl::Seconds(1));
  EXPECT_EQ(run_->status().phase(), RunStatus::TRAINING);
}

TEST_F(RunRecoveryTest, WhoMissedTheAbortIsToldWhenItComesBack) {
  Train();
  LoseRankOne(1);
  const size_t peer = Return(0, 1);
  ASSERT_EQ(peers_[peer]->sent.size(), 2u);
  EXPECT_TRUE(peers_[peer]->sent[0].welcome().recognised());
  EXPECT_TRUE(peers_[peer]->sent[1].has_abort());
}

// It was thought dead: what it sends is of an old generation, and what it holds may still be good.
TEST_F(RunRecoveryTest, ZombieIsPutOutAndJoinsAnew) {
  Train();
  SendRecords(0, 2);
  for (int i = 0; i < 64; ++i) {  // rank 0 says nothing
    WorkerMessage message = Message();
    message.mutable_heartbeat();
    run_->OnMessage(peers_[1], message);
    Advance(absl::Milliseconds(50));
  }
  ExpectClosed(0, absl::StatusCode::kAborted, "has been silent");
  Stand(1, 1, 1, 2, 0);
  for (int i = 0; i < 11; ++i) Advance(absl::Milliseconds(50));
  EXPECT_EQ(run_->status().generation(), 2u);
  SendRecords(2, 3, 0, 1);
  EXPECT_EQ(run_->status().position().phase(), Position::EVALUATE);
  const size_t peer = Return(0, 1);
  EXPECT_FALSE(peers_[peer]->sent[0].welcome().recognised());
}

// ---------------------------------------------------------------- the journal

TEST_F(RunRecoveryTest, NothingGoesOutBeforeItIsDurable) {
  int checked = 0;
  on_send_ = [&](const CoordinatorMessage& message) {
    if (!message.has_assignment() && !message.has_ack() && !message.has_abort()) return;
    EXPECT_FALSE(journal_->pending()) << message.ShortDebugString();
    ++checked;
  };
  Train();
  SendRecords(0, 2);
  Close(1);
  After(absl::Milliseconds(100));
  Stand(0, 1, 1, 2, 2);
  After(absl::Milliseconds(550));
  EXPECT_EQ(run_->status().generation(), 2u);
  EXPECT_GE(checked, 2 + 1 + 1 + 1);
}

// Those who train go on; nobody is told anything.
TEST_F(RunRecoveryTest, JournalThatCannotBeWrittenHoldsUpWhatThereIsToSay) {
  Train();
  SendRecords(0, 1);
  journal_->Fail(absl::ResourceExhaustedError("the disk is full"));
  SendRecords(1, 3);
  EXPECT_EQ(run_->status().samples_committed(), 3u);
  EXPECT_EQ(peers_[0]->acknowledged(), 1u);
  const size_t heard = peers_[0]->sent.size();
  Close(1);
  After(absl::Milliseconds(100));
  Stand(0, 1, 1, 3, 1);
  const size_t peer = Enter(1);
  After(absl::Seconds(1));
  EXPECT_EQ(peers_[0]->sent.size(), heard);
  EXPECT_TRUE(peers_[peer]->sent.empty());
  journal_->Fail(absl::OkStatus());
  Advance();
  EXPECT_EQ(peers_[peer]->sent[0].welcome().records_received(), 3u);
  EXPECT_EQ(peers_[0]->assignment().records_received(), 3u);
  EXPECT_EQ(peers_[peer]->assignment().records_received(), 3u);
  SendRecords(3, 4, 0, 2);
  EXPECT_EQ(peers_[0]->acknowledged(), 4u);
  Restart();
  EXPECT_EQ(run_->state().ledger().size(), 4u);
  EXPECT_EQ(run_->status().generation(), 2u);
}

// A run that ends tells of its end all the same, and of nothing else.
TEST_F(RunRecoveryTest, EndWhileTheJournalCannotBeWritten) {
  options_.membership.max_failures = 0;
  Train();
  journal_->Fail(absl::ResourceExhaustedError("the disk is full"));
  SendRecords(0, 1);
  Close(1);
  After(absl::Milliseconds(100));
  EXPECT_TRUE(peers_[0]->last().has_end());
  EXPECT_EQ(peers_[0]->acknowledged(), 0u);
  EXPECT_EQ(peers_[0]->Count(CoordinatorMessage::kAbort), 0);
}

// ---------------------------------------------------------------- a coordinator that dies

TEST_F(RunRecoveryTest, NextCoordinatorHasTheSameState) {
  Train();
  SendRecords(0, 3);
  EXPECT_TRUE(SendState(1, 3).ok());
  Written(0);
  Close(1);
  After(absl::Milliseconds(100));
  Stand(0, 1, 1, 3, 3);
  After(absl::Milliseconds(550));
  SendRecords(3, 4, 0, 2);
  JournalEntry before = run_->state().Snapshot();
  Restart(StoredAt(1, 3));
  before.mutable_snapshot()->set_coordinator_starts(2);
  EXPECT_EQ(run_->state().Snapshot().ShortDebugString(), before.ShortDebugString());
}

TEST_F(RunRecoveryTest, WorkersTrainOnWhileTheCoordinatorIsAway) {
  Train();
  SendRecords(0, 2);
  Restart();
  EXPECT_EQ(run_->status().phase(), RunStatus::TRAINING);
  EXPECT_EQ(run_->status().generation(), 1u);
  EXPECT_EQ(run_->status().samples_committed(), 3u);
  for (uint32_t rank = 0; rank < 2; ++rank) {
    const size_t peer = Return(rank, 1);
    const Welcome& welcome = peers_[peer]->sent[0].welcome();
    EXPECT_TRUE(welcome.recognised());
    EXPECT_EQ(welcome.coordinator_incarnation(), 43u);
    EXPECT_EQ(welcome.records_received(), 2u);
  }
  SendRecords(2, 6);
  EXPECT_EQ(peers_[0]->acknowledged(), 6u);
  EXPECT_TRUE(SendState(1, 6).ok());
  for (const size_t peer : {0, 1}) SendFinished(peer, SmallState(4));
  EXPECT_EQ(run_->status().phase(), RunStatus::FINISHED);
  EXPECT_EQ(Report()["generations"], 1);
  EXPECT_EQ(Report()["coordinator_starts"], 2);
  EXPECT_EQ(Report()["failures_survived"], 0);
}

// What was not acknowledged the workers still have.
TEST_F(RunRecoveryTest, RecordsThatWereNotDurableComeAgain) {
  Train();
  SendRecords(0, 1);
  journal_->Fail(absl::ResourceExhaustedError("the disk is full"));
  SendRecords(1, 3);
  Restart();
  const size_t peer = Return(0, 1);
  EXPECT_EQ(peers_[peer]->sent[0].welcome().records_received(), 1u);
  SendRecords(1, 3, peer);
  EXPECT_EQ(peers_[peer]->acknowledged(), 3u);
}

TEST_F(RunRecoveryTest, WhoDoesNotComeBackIsLost) {
  Train();
  SendRecords(0, 2);
  Restart();
  Return(0, 1);
  After(absl::Milliseconds(5100));
  EXPECT_TRUE(peers_[0]->last().has_abort());
  EXPECT_THAT(run_->status().reason(), HasSubstr("rank 1 of 2 (host a, pid 1001) did not come"));
}

// The generation had failed before: nobody is waited for, and nothing counts twice.
TEST_F(RunRecoveryTest, CoordinatorThatDiesBetweenTwoGenerations) {
  Train();
  LoseRankOne(2);
  Restart();
  EXPECT_EQ(run_->status().phase(), RunStatus::RECOVERING);
  const size_t peer = Return(0, 1);
  EXPECT_FALSE(peers_[peer]->sent[0].welcome().recognised());
  Stand(peer, 1, 1, 2, 2);
  After(absl::Milliseconds(550));
  EXPECT_EQ(run_->status().generation(), 2u);
  EXPECT_EQ(peers_[peer]->assignment().state_digest(), StoredAt(1, 2)->digest);
  EXPECT_EQ(run_->status().failures_survived(), 1u);
}

// The disk took less than it promised: a number is not used twice.
TEST_F(RunRecoveryTest, GenerationThatTheDiskForgot) {
  Train();
  Restart();
  const size_t peer = Return(0, 2);
  EXPECT_FALSE(peers_[peer]->sent[0].welcome().recognised());
  Stand(peer, 2, 2, 1, 0);
  After(absl::Milliseconds(5700));
  EXPECT_EQ(run_->status().generation(), 3u);
  EXPECT_EQ(peers_[peer]->assignment().state_digest(), "");  // of no lineage that is known
}

TEST_F(RunRecoveryTest, CoordinatorThatDiesAtTheVeryEnd) {
  Train();
  SendRecords(0, 6);
  EXPECT_TRUE(SendState(1, 6).ok());
  Written(0);
  Restart(StoredAt(1, 6));
  EXPECT_EQ(Advance(), 0);
  EXPECT_EQ(run_->status().phase(), RunStatus::FINISHED);
  EXPECT_EQ(Report()["weights_sha256"], WeightsSha256(SmallState(4).parameters));
}

// ---------------------------------------------------------------- begun from a checkpoint

TEST_F(RunRecoveryTest, RunBegunFromACheckpoint) {
  StartRun({1, 2}, StoredAt(0, 3), 3);
  ASSERT_EQ(writer_->jobs.size(), 1u);  // a copy of its own
  EXPECT_TRUE(writer_->jobs[0].required);
  Written(0);
  Enter(0);
  Enter(1);
  EXPECT_EQ(peers_[0]->assignment().position().epoch(), 1u);
  EXPECT_EQ(peers_[0]->assignment().state_digest(), StoredAt(0, 3)->digest);
  EXPECT_EQ(peers_[0]->assignment().records_received(), 3u);
  EXPECT_FALSE(peers_[0]->assignment().hand_in_state());
  EXPECT_TRUE(CanServe(StoredAt(0, 3)));
  SendRecords(3, 6);
  EXPECT_TRUE(SendState(1, 6).ok());
  for (const size_t peer : {0, 1}) SendFinished(peer, SmallState(4));
  EXPECT_EQ(run_->status().phase(), RunStatus::FINISHED);
  EXPECT_EQ(Report()["samples_committed"], 3);
  EXPECT_EQ(Report()["samples_expected"], 3);
}

TEST_F(RunRecoveryTest, CheckpointItWasBegunFromIsGone) {
  StartRun({1, 2}, StoredAt(0, 3), 3);
  Enter(0);
  Enter(1);
  Restart();
  for (int i = 0; i < 102; ++i) Advance(absl::Milliseconds(50));
  Enter(0);
  Enter(1);
  ExpectFailed("nobody holds the state that this run was begun from");
}

}  // namespace
}  // namespace ringmaster
