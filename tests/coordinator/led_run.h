// A run led by a test: peers that only take notes, a journal in memory, a writer that writes when
// it is told to, and a clock of the test's own.
#pragma once

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/coordinator/planned_records.h"
#include "tests/coordinator/run_fixture.h"
#include "tests/temporary_directory.h"

namespace ringmaster {

class FakePeer : public Peer {
 public:
  void Send(CoordinatorMessage message) override {
    if (on_send) on_send(message);
    sent.push_back(std::move(message));
  }
  void ReadNext() override { ++reads; }
  void Close(const absl::Status& status) override {
    if (!closed) closed = status;
  }

  const CoordinatorMessage& last() const { return sent.back(); }
  // How many messages of a kind came.
  int Count(CoordinatorMessage::KindCase kind) const {
    int count = 0;
    for (const CoordinatorMessage& message : sent) count += message.kind_case() == kind ? 1 : 0;
    return count;
  }
  // The last assignment.
  const Assignment& assignment() const {
    for (auto message = sent.rbegin(); message != sent.rend(); ++message) {
      if (message->has_assignment()) return message->assignment();
    }
    return Assignment::default_instance();
  }
  // What the last acknowledgement said; 0 before the first.
  uint64_t acknowledged() const {
    for (auto message = sent.rbegin(); message != sent.rend(); ++message) {
      if (message->has_ack()) return message->ack().records_received();
    }
    return 0;
  }

  std::function<void(const CoordinatorMessage&)> on_send;
  std::vector<CoordinatorMessage> sent;
  std::optional<absl::Status> closed;
  int reads = 0;
};

class FakeWriter : public StateWriter {
 public:
  struct Job {
    StoredStatePtr state;
    bool required = false;
    std::function<void(absl::StatusOr<std::string>)> done;
  };
  void Write(StoredStatePtr state, bool required,
             std::function<void(absl::StatusOr<std::string>)> done) override {
    jobs.push_back({std::move(state), required, std::move(done)});
  }

  std::vector<Job> jobs;
};

class RunTest : public ::testing::Test {
 protected:
  ~RunTest() override {
    run_.reset();
    if (out_ != nullptr) std::fclose(out_);
  }

  void StartRun(CountRange workers, StoredStatePtr stored = nullptr, uint64_t base = 0) {
    options_.membership.workers = workers;
    const RunState state = SmallRunState(now_, base);
    Lead(state, JournalOf(state), std::move(stored));
  }

  // Another coordinator takes up what the one before it has made durable. All streams are gone.
  void Restart(StoredStatePtr stored = nullptr) {
    const std::vector<std::string> entries = journal_->Crash();
    run_.reset();
    peers_.clear();
    JournalEntry entry;
    ASSERT_TRUE(entry.ParseFromString(entries[0]));
    auto state = RunState::FromSnapshot(entry);
    ASSERT_TRUE(state.ok()) << state.status();
    auto journal = std::make_unique<MemoryJournal>();
    ASSERT_TRUE(journal->Rotate(entries[0]).ok());
    for (size_t i = 1; i < entries.size(); ++i) {
      ASSERT_TRUE(entry.ParseFromString(entries[i]));
      const absl::Status status = state->Apply(entry);
      ASSERT_TRUE(status.ok()) << status << " " << entry.ShortDebugString();
      journal->Append(entries[i]);
    }
    ASSERT_TRUE(journal->Commit().ok());
    ++options_.incarnation;
    Lead(*std::move(state), std::move(journal), std::move(stored));
  }

  void Lead(RunState state, std::unique_ptr<MemoryJournal> journal, StoredStatePtr stored) {
    if (out_ != nullptr) std::fclose(out_);
    RunOutputs::Options options;
    run_dir_ = directory_.File(absl::StrCat("run-", ++leaders_));
    ASSERT_TRUE(std::filesystem::create_directory(run_dir_));
    options.run_dir = run_dir_;
    options.report = run_dir_ + "/copy.json";
    options.config = SmallConfig();
    options.model = ModelOf(SmallConfig());
    options.out = out_ = std::tmpfile();
    auto outputs = RunOutputs::Create(options, now_);
    ASSERT_TRUE(outputs.ok()) << outputs.status();
    auto writer = std::make_unique<FakeWriter>();
    journal_ = journal.get();
    writer_ = writer.get();
    run_.emplace(options_, std::move(state), std::move(journal), std::move(stored), now_);
    run_->Begin(*std::move(outputs), std::move(writer));
  }

  // A process says hello over a new stream; returns its place in peers_.
  size_t Greet(const WorkerMessage& hello) {
    peers_.push_back(std::make_shared<FakePeer>());
    peers_.back()->on_send = on_send_;
    run_->OnMessage(peers_.back(), hello);
    Advance();
    return peers_.size() - 1;
  }
  // The same of one that comes back to `generation`.
  size_t Return(uint32_t local_rank, uint64_t generation, uint32_t local_world_size = 2) {
    WorkerMessage hello = HelloMessage(local_rank, local_world_size);
    hello.set_run_id("run-1");
    hello.set_generation(generation);
    return Greet(hello);
  }
  // A new process joins and stands by with nothing.
  size_t Enter(uint32_t local_rank, uint32_t local_world_size = 2) {
    const size_t peer = Greet(HelloMessage(local_rank, local_world_size));
    WorkerMessage message = Message(0);
    message.mutable_standing();
    Say(peer, message);
    return peer;
  }
  // Two ranks in generation 1.
  void Train(CountRange workers = {1, 2}) {
    StartRun(workers);
    Enter(0);
    Enter(1);
    ASSERT_EQ(run_->status().phase(), RunStatus::TRAINING);
    ASSERT_EQ(run_->status().generation(), 1u);
  }

  std::optional<int> Advance(absl::Duration time = absl::ZeroDuration()) {
    now_ += time;
    exit_code_ = run_->Advance(now_);
    return exit_code_;
  }
  // In steps, as main() does, with heartbeats of those in peers_ whose streams are open.
  std::optional<int> After(absl::Duration time) {
    const absl::Time end = now_ + time;
    while (now_ < end) {
      for (const auto& peer : peers_) {
        WorkerMessage message = Message(run_->status().generation());
        message.mutable_heartbeat();
        if (!peer->closed && gone_.count(peer.get()) == 0) run_->OnMessage(peer, message);
      }
      if (Advance(std::min(end - now_, absl::Milliseconds(50)))) break;
    }
    return exit_code_;
  }

  WorkerMessage Message(uint64_t generation = 1) const {
    WorkerMessage message;
    message.set_run_id("run-1");
    message.set_generation(generation);
    return message;
  }
  void Say(size_t peer, const WorkerMessage& message) {
    run_->OnMessage(peers_[peer], message);
    Advance();
  }
  void Close(size_t peer) {
    gone_.insert(peers_[peer].get());
    run_->OnClosed(peers_[peer]);
    Advance();
  }

  void SendRecords(size_t first, size_t end, size_t peer = 0, uint64_t generation = 1) {
    WorkerMessage message = Message(generation);
    for (size_t i = first; i < end; ++i) *message.mutable_records()->add_records() = records_[i];
    Say(peer, message);
  }
  // Stands by with the state at `position`, which generation `of` computed.
  void Stand(size_t peer, uint64_t generation, uint64_t of, uint64_t position,
             uint64_t records_from, const std::string& reason = "") {
    const StoredStatePtr held = StoredAt(of, position);
    WorkerMessage message = Message(generation);
    Standing* standing = message.mutable_standing();
    standing->set_generation(of);
    *standing->mutable_position() = held->position;
    standing->set_state_digest(held->digest);
    standing->set_records_from(records_from);
    standing->set_reason(reason);
    Say(peer, message);
  }
  absl::Status SendState(uint64_t generation, uint64_t position) {
    absl::Status result = absl::UnknownError("no reply");
    run_->OnState(StoredAt(generation, position),
                  [&result](const absl::Status& status) { result = status; });
    Advance();
    return result;
  }
  void SendFinished(size_t peer, const TrainState& state, uint64_t generation = 1) {
    WorkerMessage message = Message(generation);
    message.mutable_finished()->set_state_digest(StateSha256(state));
    Say(peer, message);
  }
  // The writer has written what it was given `job`th.
  void Written(size_t job, const absl::StatusOr<std::string>& file = std::string("file")) {
    ASSERT_LT(job, writer_->jobs.size());
    writer_->jobs[job].done(file);
    Advance();
  }

  void ExpectClosed(size_t peer, absl::StatusCode code, const std::string& message) {
    ASSERT_TRUE(peers_[peer]->closed.has_value());
    EXPECT_EQ(peers_[peer]->closed->code(), code) << *peers_[peer]->closed;
    EXPECT_THAT(std::string(peers_[peer]->closed->message()), ::testing::HasSubstr(message));
  }

  void ExpectFailed(const std::string& reason) {
    EXPECT_EQ(run_->status().phase(), RunStatus::FAILED);
    EXPECT_THAT(run_->status().reason(), ::testing::HasSubstr(reason));
    const auto report = Report("report.json");
    EXPECT_EQ(report["outcome"], "failed");
    EXPECT_THAT(report["reason"].get<std::string>(), ::testing::HasSubstr(reason));
    EXPECT_EQ(Advance(absl::Seconds(2)), 1);
  }

  nlohmann::json Report(const std::string& name = "report.json") const {
    const auto bytes = ReadFile(run_dir_ + "/" + name);
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
  int leaders_ = 0;
  std::string run_dir_;  // each coordinator has one of its own: the logs are tested elsewhere
  FILE* out_ = nullptr;
  absl::Time now_ = absl::FromUnixSeconds(1700000000);
  RunOptions options_ = SmallRunOptions({1, 1});
  MemoryJournal* journal_ = nullptr;
  FakeWriter* writer_ = nullptr;
  std::optional<ringmaster::Run> run_;  // Test has a Run of its own
  std::vector<std::shared_ptr<FakePeer>> peers_;
  std::set<Peer*> gone_;
  std::function<void(const CoordinatorMessage&)> on_send_;  // of the peers to come
  std::optional<int> exit_code_;
  // Two training steps and an evaluation an epoch.
  const std::vector<GlobalRecord> records_ = PlannedRecords(SmallConfig(), 2);
};

}  // namespace ringmaster
