// The run with peers that only take notes, on a clock of the test's own.

#include "coordinator/run.h"

#include <signal.h>

#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "common/file.h"
#include "common/weights.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/coordinator/planned_records.h"
#include "tests/coordinator/run_fixture.h"
#include "tests/temporary_directory.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

class FakePeer : public Peer {
 public:
  void Send(CoordinatorMessage message) override { sent.push_back(std::move(message)); }
  void ReadNext() override { ++reads; }
  void Close(const absl::Status& status) override { closed = status; }

  const CoordinatorMessage& last() const { return sent.back(); }

  std::vector<CoordinatorMessage> sent;
  std::optional<absl::Status> closed;
  int reads = 0;
};

class RunTest : public ::testing::Test {
 protected:
  ~RunTest() override {
    if (out_ != nullptr) std::fclose(out_);
  }

  // A run of `workers` processes, all of one node; `joining` of them join.
  void StartRun(uint32_t workers, uint32_t joining) {
    run_.emplace(SmallRunOptions(static_cast<int>(workers)), now_);
    RunOutputs::Options options;
    options.run_dir = directory_.path();
    options.report = directory_.File("copy.json");
    options.config = SmallConfig();
    options.model = ModelOf(SmallConfig());
    options.out = out_ = std::tmpfile();
    auto outputs = RunOutputs::Create(options, now_);
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    run_->Begin(*std::move(outputs));
    for (uint32_t i = 0; i < joining; ++i) {
      peers_.push_back(std::make_shared<FakePeer>());
      run_->OnMessage(peers_[i], HelloMessage(i, workers));
      Advance();
    }
  }

  void Train() {
    StartRun(2, 2);
    ASSERT_EQ(run_->status().phase(), RunStatus::TRAINING);
  }

  std::optional<int> Advance(absl::Duration time = absl::ZeroDuration()) {
    now_ += time;
    exit_code_ = run_->Advance(now_);
    return exit_code_;
  }

  WorkerMessage Message(uint64_t generation = 1) const {
    WorkerMessage message;
    message.set_run_id("run-1");
    message.set_generation(generation);
    return message;
  }

  void SendRecords(size_t first, size_t end, size_t from_peer = 0) {
    WorkerMessage message = Message();
    for (size_t i = first; i < end; ++i) *message.mutable_records()->add_records() = records_[i];
    run_->OnMessage(peers_[from_peer], message);
    Advance();
  }

  absl::Status SendState(uint32_t epoch, Position::Phase phase, const TrainState& state,
                         uint64_t generation = 1) {
    auto stored = std::make_shared<StoredState>();
    stored->generation = generation;
    stored->position.set_epoch(epoch);
    stored->position.set_phase(phase);
    stored->state = state;
    stored->digest = StateSha256(state);
    absl::Status result = absl::UnknownError("no reply");
    run_->OnState(stored, [&result](const absl::Status& status) { result = status; });
    Advance();
    return result;
  }

  void SendFinished(size_t peer, const TrainState& state) {
    WorkerMessage message = Message();
    message.mutable_finished()->set_state_digest(StateSha256(state));
    run_->OnMessage(peers_[peer], message);
    Advance();
  }

  void ExpectClosed(size_t peer, absl::StatusCode code, const std::string& message) {
    ASSERT_TRUE(peers_[peer]->closed.has_value());
    EXPECT_EQ(peers_[peer]->closed->code(), code);
    EXPECT_THAT(std::string(peers_[peer]->closed->message()), HasSubstr(message));
  }

  void ExpectFailed(const std::string& reason) {
    EXPECT_EQ(run_->status().phase(), RunStatus::FAILED);
    EXPECT_THAT(run_->status().reason(), HasSubstr(reason));
    const auto report = Report("report.json");
    EXPECT_EQ(report["outcome"], "failed");
    EXPECT_THAT(report["reason"].get<std::string>(), HasSubstr(reason));
    EXPECT_EQ(Advance(absl::Seconds(2)), 1);
  }

  nlohmann::json Report(const std::string& name) const {
    const auto bytes = ReadFile(directory_.File(name));
    EXPECT_TRUE(bytes.ok()) << bytes.status();
    return nlohmann::json::parse(bytes.ok() ? *bytes : "{}");
  }

  std::string Out() {
    std::rewind(out_);
    std::string text(10000, '\0');
    text.resize(std::fread(text.data(), 1, text.size(), out_));
    return text;
  }

  const TemporaryDirectory directory_;
  FILE* out_ = nullptr;
  absl::Time now_ = absl::FromUnixSeconds(1700000000);
  std::optional<ringmaster::Run> run_;  // Test has a Run of its own
  std::vector<std::shared_ptr<FakePeer>> peers_;
  std::optional<int> exit_code_;
  // Two training steps and an evaluation an epoch.
  const std::vector<GlobalRecord> records_ = PlannedRecords(SmallConfig(), 2);
};

TEST_F(RunTest, WelcomeThenAssignment) {
  StartRun(2, 1);
  ASSERT_EQ(peers_[0]->sent.size(), 1u);
  EXPECT_EQ(peers_[0]->sent[0].run_id(), "run-1");
  const Welcome& welcome = peers_[0]->sent[0].welcome();
  EXPECT_EQ(welcome.coordinator_incarnation(), 42u);
  EXPECT_EQ(welcome.heartbeat_interval_ms(), 500u);
  EXPECT_EQ(welcome.config().SerializeAsString(), SmallConfig().SerializeAsString());
  EXPECT_EQ(peers_[0]->reads, 1);
  EXPECT_EQ(run_->status().phase(), RunStatus::WAITING);
  EXPECT_EQ(run_->status().generation(), 0u);

  peers_.push_back(std::make_shared<FakePeer>());
  run_->OnMessage(peers_[1], HelloMessage(1, 2));
  Advance();
  for (uint32_t rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(peers_[rank]->last().generation(), 1u);
    const Assignment& assignment = peers_[rank]->last().assignment();
    EXPECT_EQ(assignment.rank(), rank);
    EXPECT_EQ(assignment.world_size(), 2u);
    EXPECT_EQ(assignment.device(), CPU);
    EXPECT_TRUE(assignment.state_digest().empty());
    ASSERT_EQ(assignment.members_size(), 2);
    EXPECT_EQ(assignment.members(1).pid(), 1001);
  }
  EXPECT_EQ(run_->status().phase(), RunStatus::TRAINING);
}

TEST_F(RunTest, WholeRun) {
  Train();
  SendRecords(0, 2);
  EXPECT_EQ(peers_[0]->last().ack().records_received(), 2u);
  EXPECT_EQ(run_->status().samples_committed(), 3u);
  SendRecords(2, 3);
  EXPECT_EQ(SendState(1, Position::TRAIN, SmallState(2)), absl::OkStatus());
  SendRecords(3, 6);
  EXPECT_EQ(peers_[0]->last().ack().records_received(), 6u);
  const TrainState last = SmallState(4);
  EXPECT_EQ(SendState(2, Position::DONE, last), absl::OkStatus());
  SendFinished(0, last);
  EXPECT_FALSE(peers_[0]->last().has_end());
  SendFinished(1, last);
  for (const auto& peer : peers_) {
    ASSERT_TRUE(peer->last().has_end());
    EXPECT_EQ(peer->last().end().exit_code(), 0);
  }
  EXPECT_EQ(run_->status().phase(), RunStatus::FINISHED);

  EXPECT_EQ(exit_code_, std::nullopt);  // until both have heard
  run_->OnClosed(peers_[0]);
  EXPECT_EQ(Advance(), std::nullopt);
  run_->OnClosed(peers_[1]);
  EXPECT_EQ(Advance(), 0);

  const auto weights = LoadWeights(directory_.File("weights.safetensors"));
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
  EXPECT_TRUE(std::filesystem::exists(directory_.File("config.json")));
  EXPECT_TRUE(std::filesystem::exists(directory_.File("tensorboard/train")));
}

TEST_F(RunTest, AuditFailureEndsTheRunForAll) {
  Train();
  WorkerMessage message = Message();
  GlobalRecord record = records_[0];
  record.set_samples(1);
  *message.mutable_records()->add_records() = record;
  run_->OnMessage(peers_[0], message);
  Advance();
  for (const auto& peer : peers_) {
    EXPECT_EQ(peer->last().end().exit_code(), 1);
    EXPECT_THAT(peer->last().end().reason(),
                HasSubstr("epoch 0, step 0: the ranks gathered 1 samples instead of 2"));
  }
  ExpectFailed("the audit failed: epoch 0, step 0");
  EXPECT_FALSE(std::filesystem::exists(directory_.File("weights.safetensors")));
}

TEST_F(RunTest, LostWorkerEndsTheRunForAll) {
  Train();
  run_->OnClosed(peers_[1]);
  Advance();
  EXPECT_THAT(peers_[0]->last().end().reason(), HasSubstr("rank 1 of 2 (host a, pid 1001)"));
  ExpectFailed("rank 1 of 2 (host a, pid 1001) was lost");
}

TEST_F(RunTest, FailureComesBeforeTheStreamsEnd) {
  Train();
  WorkerMessage message = Message();
  message.mutable_failure()->set_message("out of memory");
  run_->OnMessage(peers_[1], message);
  run_->OnClosed(peers_[1]);
  Advance();
  ExpectFailed("rank 1 of 2 (host a, pid 1001): out of memory");
}

TEST_F(RunTest, FinishedWithoutAllRecords) {
  Train();
  SendRecords(0, 5);
  SendFinished(0, SmallState(4));
  SendFinished(1, SmallState(4));
  ExpectFailed("only 5 records came, and 6 of 6 samples");
}

TEST_F(RunTest, FinishedWithoutTheFinalState) {
  Train();
  SendRecords(0, 6);
  SendFinished(0, SmallState(4));
  SendFinished(1, SmallState(4));
  ExpectFailed("the final state did not come");
}

TEST_F(RunTest, FinishedWithAnotherStateThanHandedIn) {
  Train();
  SendRecords(0, 6);
  EXPECT_TRUE(SendState(2, Position::DONE, SmallState(4)).ok());
  SendFinished(0, SmallState(5));
  SendFinished(1, SmallState(5));
  ExpectFailed("but handed in");
}

TEST_F(RunTest, WeightsThatCannotBeSavedAreAFailure) {
  Train();
  SendRecords(0, 6);
  EXPECT_TRUE(SendState(2, Position::DONE, SmallState(4)).ok());
  std::filesystem::create_directories(directory_.File("weights.safetensors/in-the-way"));
  SendFinished(0, SmallState(4));
  SendFinished(1, SmallState(4));
  EXPECT_EQ(peers_[0]->last().end().exit_code(), 1);
  ExpectFailed("weights.safetensors");
}

TEST_F(RunTest, StateWhereNoneIsDue) {
  Train();
  SendRecords(0, 2);
  EXPECT_EQ(SendState(1, Position::TRAIN, SmallState(2)).code(),
            absl::StatusCode::kInvalidArgument);
  SendRecords(2, 3);
  EXPECT_EQ(SendState(2, Position::DONE, SmallState(2)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SendState(1, Position::TRAIN, SmallState(2), 2).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(run_->states().newest(), nullptr);
  EXPECT_TRUE(SendState(1, Position::TRAIN, SmallState(2)).ok());
  EXPECT_NE(run_->states().newest(), nullptr);
}

TEST_F(RunTest, FirstMessageMustBeAHello) {
  StartRun(2, 0);
  peers_.push_back(std::make_shared<FakePeer>());
  WorkerMessage message;
  message.mutable_heartbeat();
  run_->OnMessage(peers_[0], message);
  Advance();
  ExpectClosed(0, absl::StatusCode::kInvalidArgument, "not a hello");
  EXPECT_EQ(peers_[0]->reads, 0);
}

TEST_F(RunTest, HelloOfAnotherRun) {
  StartRun(2, 0);
  peers_.push_back(std::make_shared<FakePeer>());
  WorkerMessage message = HelloMessage(0, 2);
  message.set_run_id("run-0");
  run_->OnMessage(peers_[0], message);
  Advance();
  ExpectClosed(0, absl::StatusCode::kFailedPrecondition, "this is run run-1, not run-0");
  EXPECT_EQ(run_->status().phase(), RunStatus::WAITING);
}

TEST_F(RunTest, SecondHello) {
  Train();
  WorkerMessage message = HelloMessage(1, 2);
  message.set_run_id("run-1");
  message.set_generation(1);
  run_->OnMessage(peers_[1], message);
  Advance();
  ExpectClosed(1, absl::StatusCode::kFailedPrecondition, "second hello");
  ExpectFailed("rank 1 of 2 (host a, pid 1001) was put out: a second hello");
}

TEST_F(RunTest, MessageWithoutAKind) {
  Train();
  run_->OnMessage(peers_[1], Message());
  Advance();
  ExpectClosed(1, absl::StatusCode::kInvalidArgument, "kind");
}

TEST_F(RunTest, MessageOfAnotherGeneration) {
  Train();
  WorkerMessage message = Message(7);
  message.mutable_heartbeat();
  run_->OnMessage(peers_[1], message);
  Advance();
  ExpectClosed(1, absl::StatusCode::kFailedPrecondition, "generation 7; the current one is 1");
}

// Heartbeats that were under way when the generation was formed.
TEST_F(RunTest, HeartbeatFromBeforeTheAssignment) {
  Train();
  WorkerMessage message = Message(0);
  message.mutable_heartbeat();
  run_->OnMessage(peers_[1], message);
  Advance();
  EXPECT_FALSE(peers_[1]->closed.has_value());
  EXPECT_EQ(peers_[1]->reads, 2);
}

TEST_F(RunTest, RecordsOfAnotherRankThanTheFirst) {
  Train();
  SendRecords(0, 1, 1);
  ExpectClosed(1, absl::StatusCode::kInvalidArgument, "rank 0 only");
}

TEST_F(RunTest, LateComerIsRefusedAndTrainingGoesOn) {
  Train();
  peers_.push_back(std::make_shared<FakePeer>());
  WorkerMessage message = HelloMessage(0, 1);
  message.mutable_hello()->set_node_id("b-1");
  run_->OnMessage(peers_[2], message);
  Advance();
  ExpectClosed(2, absl::StatusCode::kResourceExhausted, "has all its members");
  run_->OnClosed(peers_[2]);
  Advance();
  EXPECT_EQ(run_->status().phase(), RunStatus::TRAINING);
}

TEST_F(RunTest, SilentWhileWaitingIsToldToComeAgain) {
  StartRun(2, 1);
  for (int i = 0; i < 35; ++i) Advance(absl::Milliseconds(100));
  ExpectClosed(0, absl::StatusCode::kUnavailable, "join again");
  EXPECT_EQ(run_->status().phase(), RunStatus::WAITING);
}

TEST_F(RunTest, JoinTimeout) {
  StartRun(2, 0);
  Advance(absl::Seconds(600));
  ExpectFailed("waited 10m for 2 workers: nobody is here");
}

TEST_F(RunTest, Stop) {
  Train();
  SendRecords(0, 1);
  run_->Stop(SIGINT);
  EXPECT_EQ(Advance(), std::nullopt);
  EXPECT_THAT(peers_[1]->last().end().reason(), HasSubstr("stopped by SIGINT"));
  EXPECT_EQ(peers_[1]->last().end().exit_code(), 1);
  EXPECT_EQ(Report("report.json")["outcome"], "interrupted");
  EXPECT_EQ(Report("report.json")["samples_committed"], 2);
  EXPECT_EQ(Advance(absl::Milliseconds(1500)), 130);  // nobody closed its stream
}

TEST_F(RunTest, StopBeforeAnybodyCame) {
  StartRun(2, 0);
  run_->Stop(SIGTERM);
  EXPECT_EQ(Advance(), 143);
}

TEST_F(RunTest, KeysLiveInTheGeneration) {
  StartRun(2, 1);
  EXPECT_EQ(run_->keys().Set(1, "k", "v").code(), absl::StatusCode::kFailedPrecondition);
  peers_.push_back(std::make_shared<FakePeer>());
  run_->OnMessage(peers_[1], HelloMessage(1, 2));
  Advance();
  EXPECT_TRUE(run_->keys().Set(1, "k", "v").ok());
  absl::Status waited;
  run_->keys().Get(
      1, "l", [&waited](const absl::StatusOr<std::string>& value) { waited = value.status(); });
  run_->Stop(SIGTERM);
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
