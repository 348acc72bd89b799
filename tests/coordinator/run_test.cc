// A run without failures: from the first worker to the report, and what is refused.

#include "coordinator/run.h"

#include <signal.h>

#include <filesystem>
#include <string>

#include "common/weights.h"
#include "tests/coordinator/led_run.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

TEST_F(RunTest, WelcomeThenAssignment) {
  StartRun({2, 2});
  Enter(0);
  ASSERT_EQ(peers_[0]->sent.size(), 1u);
  EXPECT_EQ(peers_[0]->sent[0].run_id(), "run-1");
  const Welcome& welcome = peers_[0]->sent[0].welcome();
  EXPECT_EQ(welcome.coordinator_incarnation(), 42u);
  EXPECT_EQ(welcome.heartbeat_interval_ms(), 500u);
  EXPECT_EQ(welcome.config().SerializeAsString(), SmallConfig().SerializeAsString());
  EXPECT_FALSE(welcome.recognised());
  EXPECT_EQ(welcome.checkpoint_every_seconds(), 30);
  EXPECT_EQ(peers_[0]->reads, 2);  // hello and standing
  EXPECT_EQ(run_->status().phase(), RunStatus::WAITING);
  EXPECT_EQ(run_->status().generation(), 0u);

  Enter(1);
  for (uint32_t rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(peers_[rank]->last().generation(), 1u);
    ASSERT_TRUE(peers_[rank]->last().has_assignment());
    const Assignment& assignment = peers_[rank]->assignment();
    EXPECT_EQ(assignment.rank(), rank);
    EXPECT_EQ(assignment.world_size(), 2u);
    EXPECT_EQ(assignment.device(), CPU);
    EXPECT_TRUE(assignment.state_digest().empty());
    EXPECT_FALSE(assignment.hand_in_state());
    EXPECT_EQ(assignment.records_received(), 0u);
    ASSERT_EQ(assignment.members_size(), 2);
    EXPECT_EQ(assignment.members(1).pid(), 1001);
  }
  EXPECT_EQ(run_->status().phase(), RunStatus::TRAINING);
}

TEST_F(RunTest, WholeRun) {
  Train();
  SendRecords(0, 2);
  EXPECT_EQ(peers_[0]->acknowledged(), 2u);
  EXPECT_EQ(run_->status().samples_committed(), 3u);
  SendRecords(2, 3);
  EXPECT_EQ(SendState(1, 3), absl::OkStatus());
  EXPECT_FALSE(writer_->jobs[0].required);
  SendRecords(3, 6);
  EXPECT_EQ(peers_[0]->acknowledged(), 6u);
  EXPECT_EQ(SendState(1, 6), absl::OkStatus());
  EXPECT_TRUE(writer_->jobs[1].required);
  const TrainState last = SmallState(4);
  SendFinished(0, last);
  EXPECT_FALSE(peers_[0]->last().has_end());
  SendFinished(1, last);
  for (const auto& peer : peers_) {
    ASSERT_TRUE(peer->last().has_end());
    EXPECT_EQ(peer->last().end().exit_code(), 0);
  }
  EXPECT_EQ(run_->status().phase(), RunStatus::FINISHED);

  EXPECT_EQ(exit_code_, std::nullopt);  // until both have heard
  Close(0);
  EXPECT_EQ(exit_code_, std::nullopt);
  Close(1);
  EXPECT_EQ(exit_code_, 0);

  const auto weights = LoadWeights(run_dir_ + "/weights.safetensors");
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->parameters, last.parameters);
  for (const char* name : {"report.json", "copy.json"}) {
    const auto report = Report(name);
    EXPECT_EQ(report["outcome"], "success");
    EXPECT_EQ(report["samples_committed"], 6);
    EXPECT_EQ(report["samples_expected"], 6);
    EXPECT_EQ(report["steps"], 4);
    EXPECT_EQ(report["generations"], 1);
    EXPECT_EQ(report["world_size"], 2);
    EXPECT_EQ(report["test_accuracy"], 0.5);
    EXPECT_EQ(report["test_loss"], 0.5);
    EXPECT_EQ(report["weights_sha256"], WeightsSha256(last.parameters));
  }
  EXPECT_THAT(Out(), HasSubstr("6 of 6 samples"));
  EXPECT_TRUE(std::filesystem::exists(run_dir_ + "/config.json"));
  EXPECT_TRUE(std::filesystem::exists(run_dir_ + "/tensorboard/train"));
  EXPECT_EQ(run_->state().ended()->outcome(), RunEnded::SUCCESS);
}

TEST_F(RunTest, EveryRankHearsWhatItMayForget) {
  Train();
  After(absl::Seconds(1));
  SendRecords(0, 1);
  EXPECT_EQ(peers_[0]->acknowledged(), 1u);
  EXPECT_EQ(peers_[1]->acknowledged(), 1u);
  SendRecords(1, 2);
  EXPECT_EQ(peers_[0]->acknowledged(), 2u);  // the sender at once
  EXPECT_EQ(peers_[1]->acknowledged(), 1u);
  After(absl::Milliseconds(500));
  EXPECT_EQ(peers_[1]->acknowledged(), 2u);
}

TEST_F(RunTest, DuplicateRecordsArePassedOver) {
  Train();
  SendRecords(0, 2);
  SendRecords(0, 3);
  EXPECT_EQ(peers_[0]->acknowledged(), 3u);
  EXPECT_EQ(run_->status().samples_committed(), 3u);
  EXPECT_EQ(run_->status().phase(), RunStatus::TRAINING);
}

TEST_F(RunTest, LateWorkerHearsThatTheRunIsOver) {
  Train();
  SendRecords(0, 6);
  EXPECT_TRUE(SendState(1, 6).ok());
  for (const size_t peer : {0, 1}) SendFinished(peer, SmallState(4));
  const size_t late = Greet(HelloMessage(0, 1));
  ASSERT_TRUE(peers_[late]->last().has_end());
  EXPECT_EQ(peers_[late]->last().end().exit_code(), 0);
  EXPECT_FALSE(peers_[late]->closed.has_value());
}

// ---------------------------------------------------------------- ends that are failures

TEST_F(RunTest, AuditFailureEndsTheRunForAll) {
  Train();
  WorkerMessage message = Message();
  *message.mutable_records()->add_records() = records_[0];
  *message.mutable_records()->add_records() = records_[1];
  message.mutable_records()->mutable_records(1)->set_samples(2);
  Say(0, message);
  for (const auto& peer : peers_) {
    EXPECT_EQ(peer->last().end().exit_code(), 1);
    EXPECT_THAT(peer->last().end().reason(),
                HasSubstr("epoch 0, step 1: the ranks gathered 2 samples instead of 1"));
  }
  ExpectFailed("the audit failed: epoch 0, step 1");
  EXPECT_FALSE(std::filesystem::exists(run_dir_ + "/weights.safetensors"));
  Restart();
  EXPECT_EQ(run_->state().ledger().size(), 1u);  // what was right is kept
}

TEST_F(RunTest, EndWaitsForTheLastRecords) {
  Train();
  SendRecords(0, 5);
  EXPECT_TRUE(SendState(1, 6).ok());  // waits for them
  for (const size_t peer : {0, 1}) SendFinished(peer, SmallState(4));
  EXPECT_EQ(run_->status().phase(), RunStatus::TRAINING);
  SendRecords(5, 6);
  EXPECT_EQ(run_->status().phase(), RunStatus::FINISHED);
}

TEST_F(RunTest, FinishedWithAnotherStateThanHandedIn) {
  Train();
  SendRecords(0, 6);
  EXPECT_TRUE(SendState(1, 6).ok());
  SendFinished(0, SmallState(5));
  ExpectFailed("but handed in");
}

TEST_F(RunTest, WeightsThatCannotBeSavedAreAFailure) {
  Train();
  SendRecords(0, 6);
  EXPECT_TRUE(SendState(1, 6).ok());
  std::filesystem::create_directories(run_dir_ + "/weights.safetensors/in-the-way");
  for (const size_t peer : {0, 1}) SendFinished(peer, SmallState(4));
  EXPECT_EQ(peers_[0]->last().end().exit_code(), 1);
  ExpectFailed("weights.safetensors");
}

TEST_F(RunTest, JoinTimeout) {
  StartRun({2, 2});
  Advance(absl::Seconds(600));
  ExpectFailed("waited 10m for 2 workers: nobody is here");
}

TEST_F(RunTest, RanksThatHoldDifferentStatesOfOnePosition) {
  Train();
  SendRecords(0, 2);
  Stand(0, 1, 1, 2, 2);
  WorkerMessage message = Message();
  message.mutable_standing()->set_generation(1);
  *message.mutable_standing()->mutable_position() = StoredAt(1, 2)->position;
  message.mutable_standing()->set_state_digest("other");
  Say(1, message);
  ExpectFailed("two states of evaluation after epoch 0 differ");
}

// ---------------------------------------------------------------- states

TEST_F(RunTest, StateThatComesBeforeItsRecordsWaits) {
  Train();
  SendRecords(0, 2);
  EXPECT_TRUE(SendState(1, 3).ok());
  EXPECT_TRUE(writer_->jobs.empty());
  SendRecords(2, 3);
  ASSERT_EQ(writer_->jobs.size(), 1u);
  EXPECT_EQ(writer_->jobs[0].state->digest, StoredAt(1, 3)->digest);
}

TEST_F(RunTest, CheckpointIsRegisteredWhenItIsOnTheDisk) {
  Train();
  SendRecords(0, 3);
  EXPECT_TRUE(SendState(1, 2).ok());
  EXPECT_TRUE(SendState(1, 3).ok());
  EXPECT_EQ(run_->state().ledger().committed(), 0u);
  Written(0, absl::CancelledError("superseded"));
  EXPECT_EQ(run_->state().ledger().committed(), 0u);
  Written(1);
  EXPECT_EQ(run_->state().ledger().committed(), 3u);
}

TEST_F(RunTest, CheckpointThatCannotBeWrittenDoesNotStopTraining) {
  Train();
  SendRecords(0, 2);
  EXPECT_TRUE(SendState(1, 2).ok());
  Written(0, absl::ResourceExhaustedError("the disk is full"));
  EXPECT_EQ(run_->state().ledger().committed(), 0u);
  SendRecords(2, 3);
  EXPECT_EQ(peers_[0]->acknowledged(), 3u);
}

TEST_F(RunTest, StatesThatAreRefused) {
  Train();
  SendRecords(0, 3);
  EXPECT_EQ(SendState(2, 3).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(SendState(0, 3).code(), absl::StatusCode::kFailedPrecondition);
  auto nowhere = std::make_shared<StoredState>(*StoredAt(1, 3));
  nowhere->position.set_epoch(2);
  absl::Status result;
  run_->OnState(nowhere, [&result](const absl::Status& status) { result = status; });
  Advance();
  EXPECT_EQ(result.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(run_->states().newest(), nullptr);
  EXPECT_TRUE(SendState(1, 3).ok());
  EXPECT_NE(run_->states().newest(), nullptr);
}

// ---------------------------------------------------------------- what is refused

TEST_F(RunTest, FirstMessageMustBeAHello) {
  StartRun({2, 2});
  WorkerMessage message;
  message.mutable_heartbeat();
  Greet(message);
  ExpectClosed(0, absl::StatusCode::kInvalidArgument, "not a hello");
  EXPECT_EQ(peers_[0]->reads, 0);
}

TEST_F(RunTest, HelloOfAnotherRun) {
  StartRun({2, 2});
  WorkerMessage message = HelloMessage(0, 2);
  message.set_run_id("run-0");
  Greet(message);
  ExpectClosed(0, absl::StatusCode::kFailedPrecondition, "this is run run-1, not run-0");
  EXPECT_EQ(run_->status().phase(), RunStatus::WAITING);
}

TEST_F(RunTest, MessageOfAnotherRun) {
  Train();
  WorkerMessage message = Message();
  message.set_run_id("run-0");
  message.mutable_heartbeat();
  Say(1, message);
  ExpectClosed(1, absl::StatusCode::kFailedPrecondition, "the message is of run run-0");
}

TEST_F(RunTest, SecondHello) {
  Train();
  WorkerMessage message = HelloMessage(1, 2);
  message.set_run_id("run-1");
  message.set_generation(1);
  Say(1, message);
  ExpectClosed(1, absl::StatusCode::kFailedPrecondition, "second hello");
  After(absl::Milliseconds(100));
  EXPECT_THAT(run_->status().reason(),
              HasSubstr("rank 1 of 2 (host a, pid 1001) was put out: a second hello"));
}

TEST_F(RunTest, MessageWithoutAKind) {
  Train();
  Say(1, Message());
  ExpectClosed(1, absl::StatusCode::kInvalidArgument, "kind");
}

TEST_F(RunTest, RecordsOfAnotherGeneration) {
  Train();
  SendRecords(0, 1, 0, 7);
  ExpectClosed(0, absl::StatusCode::kAborted, "generation 7; the current one is 1");
  EXPECT_EQ(run_->status().samples_committed(), 0u);
}

TEST_F(RunTest, FinishedOfAnotherGeneration) {
  Train();
  SendFinished(0, SmallState(4), 2);
  ExpectClosed(0, absl::StatusCode::kAborted, "generation 2");
}

// Heartbeats that were under way when the generation was formed.
TEST_F(RunTest, HeartbeatFromBeforeTheAssignment) {
  Train();
  WorkerMessage message = Message(0);
  message.mutable_heartbeat();
  Say(1, message);
  EXPECT_FALSE(peers_[1]->closed.has_value());
  EXPECT_EQ(peers_[1]->reads, 3);
}

// A standing that crossed the assignment on its way: the process will do as that says.
TEST_F(RunTest, StandingFromBeforeTheAssignment) {
  Train();
  Stand(1, 0, 0, 0, 0);
  After(absl::Seconds(1));
  EXPECT_EQ(run_->status().phase(), RunStatus::TRAINING);
  EXPECT_EQ(run_->status().generation(), 1u);
}

TEST_F(RunTest, StandingAtNoPlaceOfTheTimeline) {
  Train();
  WorkerMessage message = Message();
  message.mutable_standing()->mutable_position()->set_epoch(9);
  Say(1, message);
  ExpectClosed(1, absl::StatusCode::kInvalidArgument, "position epoch 9");
}

TEST_F(RunTest, RecordsOfAnotherRankThanTheFirst) {
  Train();
  SendRecords(0, 1, 1);
  ExpectClosed(1, absl::StatusCode::kInvalidArgument, "rank 0 only");
  EXPECT_EQ(run_->status().samples_committed(), 0u);
}

TEST_F(RunTest, LateComerIsRefusedAndTrainingGoesOn) {
  Train();
  WorkerMessage message = HelloMessage(0, 1);
  message.mutable_hello()->set_node_id("b-1");
  Greet(message);
  ExpectClosed(2, absl::StatusCode::kResourceExhausted, "the run takes 1 to 2 workers");
  Close(2);
  EXPECT_EQ(run_->status().phase(), RunStatus::TRAINING);
}

TEST_F(RunTest, SilentWhileWaitingIsToldToJoinAnew) {
  StartRun({2, 2});
  Enter(0);
  for (int i = 0; i < 31; ++i) Advance(absl::Milliseconds(100));
  ExpectClosed(0, absl::StatusCode::kAborted, "put out: no heartbeat came");
  EXPECT_EQ(run_->status().phase(), RunStatus::WAITING);
}

// ---------------------------------------------------------------- interruption

TEST_F(RunTest, InterruptionStopsAtAnAgreedStepWithItsStateOnTheDisk) {
  Train();
  SendRecords(0, 1);
  run_->Stop(SIGINT);
  Advance();
  ASSERT_TRUE(peers_[0]->last().has_regroup());
  EXPECT_EQ(peers_[1]->Count(CoordinatorMessage::kRegroup), 0);
  SendRecords(1, 2);
  EXPECT_TRUE(SendState(1, 2).ok());
  Stand(0, 1, 1, 2, 2);
  Stand(1, 1, 1, 2, 0);
  After(absl::Seconds(1));
  EXPECT_FALSE(peers_[0]->last().has_end());  // until it is on the disk
  EXPECT_EQ(run_->status().generation(), 1u);
  Written(0);
  for (const auto& peer : peers_) {
    ASSERT_TRUE(peer->last().has_end());
    EXPECT_EQ(peer->last().end().exit_code(), 1);
  }
  EXPECT_EQ(Report()["outcome"], "interrupted");
  EXPECT_EQ(Report()["reason"],
            "the run was stopped by SIGINT at evaluation after epoch 0; it can be gone on with "
            "from evaluation after epoch 0");
  EXPECT_EQ(Report()["samples_committed"], 3);
  EXPECT_EQ(Report()["failures_survived"], 0);
  EXPECT_EQ(exit_code_, std::nullopt);
  EXPECT_EQ(Advance(absl::Milliseconds(1500)), 130);  // nobody closed its stream

  // And is gone on with.
  Restart(StoredAt(1, 2));
  EXPECT_FALSE(run_->state().ended().has_value());
  Enter(0);
  Enter(1);
  After(absl::Milliseconds(500));
  EXPECT_EQ(run_->status().generation(), 2u);
  EXPECT_EQ(peers_[1]->assignment().state_digest(), StoredAt(1, 2)->digest);
  EXPECT_EQ(peers_[0]->assignment().records_received(), 2u);
}

TEST_F(RunTest, InterruptionDoesNotWaitForEver) {
  Train();
  run_->Stop(SIGTERM);
  After(absl::Milliseconds(3950));
  EXPECT_FALSE(peers_[0]->last().has_end());
  After(absl::Milliseconds(50));
  EXPECT_THAT(peers_[0]->last().end().reason(), HasSubstr("stopped by SIGTERM"));
  EXPECT_THAT(peers_[0]->last().end().reason(), HasSubstr("from the beginning"));
}

TEST_F(RunTest, SecondInterruptionDoesNotWait) {
  Train();
  run_->Stop(SIGINT);
  Advance();
  run_->Stop(SIGINT);
  Advance();
  EXPECT_TRUE(peers_[1]->last().has_end());
}

TEST_F(RunTest, StopBeforeAnybodyCame) {
  StartRun({2, 2});
  run_->Stop(SIGTERM);
  EXPECT_EQ(Advance(), 143);
}

// ---------------------------------------------------------------- keys, checks, outputs

TEST_F(RunTest, KeysLiveInTheGeneration) {
  StartRun({2, 2});
  Enter(0);
  EXPECT_EQ(run_->keys().Set(1, "k", "v").code(), absl::StatusCode::kFailedPrecondition);
  Enter(1);
  EXPECT_TRUE(run_->keys().Set(1, "k", "v").ok());
  absl::Status waited;
  run_->keys().Get(
      1, "l", [&waited](const absl::StatusOr<std::string>& value) { waited = value.status(); });
  run_->Stop(SIGTERM);
  run_->Stop(SIGTERM);
  Advance();
  EXPECT_EQ(waited.code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(RunTest, ChecksRunAndGeneration) {
  Train();
  EXPECT_TRUE(run_->CheckRun("run-1").ok());
  EXPECT_TRUE(run_->CheckRun("").ok());
  EXPECT_EQ(run_->CheckRun("run-2").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(run_->CheckGeneration("run-1", 1).ok());
  EXPECT_EQ(run_->CheckGeneration("run-1", 0).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(run_->CheckGeneration("run-2", 1).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(RunTest, OutputsInTheWayAreRefusedAtTheStart) {
  std::filesystem::create_directories(directory_.File("config.json"));
  RunOutputs::Options options;
  options.run_dir = directory_.path();
  options.config = SmallConfig();
  options.model = ModelOf(SmallConfig());
  EXPECT_FALSE(RunOutputs::Create(options, now_).ok());
}

}  // namespace
}  // namespace ringmaster
