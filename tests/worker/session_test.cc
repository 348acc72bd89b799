#include "worker/session.h"

#include <future>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "tests/worker/session_coordinator.h"

namespace ringmaster {
namespace {

class Recorder : public Session::Handler {
 public:
  void OnMessage(const CoordinatorMessage& message) override { messages.push_back(message); }
  void OnEnd(const absl::Status& status) override { ended.set_value(status); }

  std::vector<CoordinatorMessage> messages;  // after the end
  std::promise<absl::Status> ended;
};

class SessionTest : public ::testing::Test {
 protected:
  void Serve(std::function<grpc::Status(ScriptedCoordinator::Stream*)> session) {
    coordinator_.session = std::move(session);
    coordinator_.Start();
    stub_ = Training::NewStub(MakeChannel(coordinator_.address()));
  }

  std::unique_ptr<Session> Open() {
    WorkerMessage hello;
    hello.mutable_hello()->set_incarnation(77);
    return std::make_unique<Session>(stub_.get(), hello, &recorder_);
  }
  absl::Status End() { return recorder_.ended.get_future().get(); }

  ScriptedCoordinator coordinator_;
  std::unique_ptr<Training::Stub> stub_;
  Recorder recorder_;
};

WorkerMessage Steps(uint64_t steps) {
  WorkerMessage message;
  message.mutable_heartbeat()->set_steps_done(steps);
  return message;
}

TEST_F(SessionTest, ClosingSendsWhatIsQueuedInOrder) {
  std::vector<WorkerMessage> got;
  Serve([&got](ScriptedCoordinator::Stream* stream) {
    WorkerMessage message;
    while (stream->Read(&message)) got.push_back(message);
    return grpc::Status::OK;
  });
  auto session = Open();
  for (uint64_t i = 0; i < 100; ++i) session->Send(Steps(i));
  session->Close(std::chrono::seconds(20));
  EXPECT_EQ(End(), absl::OkStatus());
  session->Send(Steps(100));
  session.reset();
  ASSERT_EQ(got.size(), 101u);
  EXPECT_EQ(got[0].hello().incarnation(), 77u);
  for (uint64_t i = 0; i < 100; ++i) EXPECT_EQ(got[i + 1].heartbeat().steps_done(), i);
}

TEST_F(SessionTest, TellsEachMessageAndThenTheEnd) {
  Serve([](ScriptedCoordinator::Stream* stream) {
    for (uint64_t i = 0; i < 50; ++i) {
      CoordinatorMessage message;
      message.mutable_ack()->set_records_received(i);
      stream->Write(message);
    }
    return grpc::Status(grpc::StatusCode::ABORTED, "put out");
  });
  const auto session = Open();
  EXPECT_EQ(End(), absl::AbortedError("put out"));
  ASSERT_EQ(recorder_.messages.size(), 50u);
  for (uint64_t i = 0; i < 50; ++i) {
    EXPECT_EQ(recorder_.messages[i].ack().records_received(), i);
  }
}

TEST_F(SessionTest, NobodyThereIsUnavailable) {
  stub_ = Training::NewStub(MakeChannel("127.0.0.1:1"));
  const auto session = Open();
  EXPECT_EQ(End().code(), absl::StatusCode::kUnavailable);
}

TEST_F(SessionTest, ClosingDoesNotWaitForASilentCoordinator) {
  std::promise<void> go;
  Serve([silence = go.get_future().share()](ScriptedCoordinator::Stream*) {
    silence.wait();
    return grpc::Status::OK;
  });
  auto session = Open();
  const absl::Time start = absl::Now();
  session->Close(std::chrono::milliseconds(50));
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  EXPECT_EQ(End().code(), absl::StatusCode::kCancelled);
  go.set_value();
}

}  // namespace
}  // namespace ringmaster
