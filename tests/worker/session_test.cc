#include "worker/session.h"

#include <atomic>
#include <future>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/session_coordinator.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kSoon = absl::Seconds(20);

CoordinatorMessage MakeWelcome() {
  CoordinatorMessage message;
  message.set_run_id("run-1");
  message.mutable_welcome()->mutable_config()->set_epochs(3);
  message.mutable_welcome()->set_heartbeat_interval_ms(50);
  return message;
}

class SessionTest : public ::testing::Test {
 protected:
  // Starts the coordinator: it reads the Hello, welcomes, then does `rest`.
  void Serve(std::function<grpc::Status(ScriptedCoordinator::Stream*)> rest) {
    coordinator_.session = [this, rest](ScriptedCoordinator::Stream* stream) {
      WorkerMessage hello;
      EXPECT_TRUE(stream->Read(&hello));
      hello_ = hello;
      EXPECT_TRUE(stream->Write(MakeWelcome()));
      return rest(stream);
    };
    Start();
  }

  void Start() {
    coordinator_.Start();
    stub_ = Training::NewStub(MakeChannel(coordinator_.address()));
  }

  absl::StatusOr<std::unique_ptr<Session>> Open(absl::Duration timeout = kSoon) {
    Hello hello;
    hello.set_host("here");
    hello.set_incarnation(77);
    return Session::Open(stub_.get(), "", hello, timeout);
  }

  ScriptedCoordinator coordinator_;
  std::unique_ptr<Training::Stub> stub_;
  WorkerMessage hello_;
};

grpc::Status DrainStream(ScriptedCoordinator::Stream* stream) {
  WorkerMessage message;
  while (stream->Read(&message)) {
  }
  return grpc::Status::OK;
}

TEST_F(SessionTest, HelloIsWelcomed) {
  Serve(DrainStream);
  auto session = Open();
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ((*session)->welcome().config().epochs(), 3u);
  EXPECT_EQ((*session)->run_id(), "run-1");
  EXPECT_EQ(hello_.hello().incarnation(), 77u);
  EXPECT_TRUE((*session)->health().ok());
}

TEST_F(SessionTest, MessagesCarryRunAndGenerationInOrder) {
  std::vector<WorkerMessage> got;
  Serve([&got](ScriptedCoordinator::Stream* stream) {
    CoordinatorMessage assign;
    assign.set_generation(4);
    assign.mutable_assignment()->set_rank(2);
    assign.mutable_assignment()->set_world_size(5);
    stream->Write(assign);
    WorkerMessage message;
    while (stream->Read(&message)) got.push_back(message);
    return grpc::Status::OK;
  });
  {
    auto session = Open();
    ASSERT_TRUE(session.ok()) << session.status();
    const auto assigned = (*session)->WaitForAssignment();
    ASSERT_TRUE(assigned.ok()) << assigned.status();
    EXPECT_EQ(assigned->generation, 4u);
    EXPECT_EQ(assigned->assignment.rank(), 2u);
    for (uint64_t i = 0; i < 100; ++i) {
      WorkerMessage message;
      message.mutable_heartbeat()->set_steps_done(i);
      (*session)->Send(std::move(message));
    }
  }  // the destructor sends what is queued
  coordinator_.Stop();
  ASSERT_EQ(got.size(), 100u);
  for (uint64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(got[i].heartbeat().steps_done(), i);
    EXPECT_EQ(got[i].run_id(), "run-1");
    EXPECT_EQ(got[i].generation(), 4u);
  }
}

TEST_F(SessionTest, RefusalKeepsItsCodeAndReason) {
  coordinator_.session = [](ScriptedCoordinator::Stream*) {
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "version 2 here, 1 there");
  };
  Start();
  const auto session = Open();
  EXPECT_EQ(session.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(session.status().message()), HasSubstr("version 2 here"));
}

TEST_F(SessionTest, RefusalAfterTheWelcomeKeepsItsReasonToo) {
  Serve([](ScriptedCoordinator::Stream*) {
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
  });
  auto session = Open();
  ASSERT_TRUE(session.ok()) << session.status();
  const auto assigned = (*session)->WaitForAssignment();
  EXPECT_EQ(assigned.status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(SessionTest, NobodyThereIsUnavailable) {
  stub_ = Training::NewStub(MakeChannel("127.0.0.1:1"));
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(SessionTest, SilenceIsUnavailable) {
  coordinator_.session = DrainStream;
  Start();
  const auto session = Open(absl::Milliseconds(50));
  EXPECT_EQ(session.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(session.status().message()), HasSubstr("did not answer within 50ms"));
}

TEST_F(SessionTest, AbortInterruptsOnce) {
  std::atomic<bool> go{false};
  Serve([&go](ScriptedCoordinator::Stream* stream) {
    go.wait(false);
    CoordinatorMessage abort;
    abort.mutable_abort()->set_reason("rank 1 is gone");
    stream->Write(abort);
    return DrainStream(stream);
  });
  auto session = Open();
  ASSERT_TRUE(session.ok()) << session.status();
  std::atomic<int> calls{0};
  (*session)->SetInterrupt([&calls] {
    ++calls;
    calls.notify_all();
  });
  EXPECT_EQ(calls, 0);
  go = true;
  go.notify_all();
  calls.wait(0);
  EXPECT_EQ((*session)->health().code(), absl::StatusCode::kAborted);
  EXPECT_EQ((*session)->health().message(), "rank 1 is gone");
  (*session)->SetInterrupt(nullptr);
  EXPECT_EQ(calls, 1);
}

TEST_F(SessionTest, InterruptSetTooLateIsCalledAtOnce) {
  Serve([](ScriptedCoordinator::Stream*) { return grpc::Status::OK; });
  auto session = Open();
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ((*session)->WaitForAssignment().status().code(), absl::StatusCode::kUnavailable);
  int calls = 0;
  (*session)->SetInterrupt([&calls] { ++calls; });
  EXPECT_EQ(calls, 1);
}

TEST_F(SessionTest, BrokenStreamEndsEveryWait) {
  std::atomic<bool> go{false};
  Serve([&go](ScriptedCoordinator::Stream*) {
    go.wait(false);
    return grpc::Status::OK;
  });
  auto session = Open();
  ASSERT_TRUE(session.ok()) << session.status();
  std::thread breaker([&go] {
    go = true;
    go.notify_all();
  });
  EXPECT_EQ((*session)->WaitForAck(1, kSoon).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ((*session)->WaitForEnd(kSoon).status().code(), absl::StatusCode::kUnavailable);
  breaker.join();
}

TEST_F(SessionTest, AcknowledgementsAndTheEnd) {
  Serve([](ScriptedCoordinator::Stream* stream) {
    WorkerMessage message;
    stream->Read(&message);
    CoordinatorMessage ack;
    ack.mutable_ack()->set_records_received(message.records().records_size());
    stream->Write(ack);
    CoordinatorMessage end;
    end.mutable_end()->set_exit_code(0);
    end.mutable_end()->set_reason("done");
    stream->Write(end);
    return DrainStream(stream);
  });
  auto session = Open();
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ((*session)->WaitForAck(1, absl::Milliseconds(20)).code(),
            absl::StatusCode::kDeadlineExceeded);
  WorkerMessage message;
  message.mutable_records()->add_records();
  message.mutable_records()->add_records();
  (*session)->Send(std::move(message));
  EXPECT_TRUE((*session)->WaitForAck(2, kSoon).ok());
  const auto end = (*session)->WaitForEnd(kSoon);
  ASSERT_TRUE(end.ok()) << end.status();
  EXPECT_EQ(end->reason(), "done");
}

TEST_F(SessionTest, DestructorDoesNotWaitForASilentCoordinator) {
  std::promise<void> go;
  Serve([silence = go.get_future().share()](ScriptedCoordinator::Stream*) {
    silence.wait();
    return grpc::Status::OK;
  });
  auto session = Open();
  const absl::Time before = absl::Now();
  EXPECT_TRUE(session.ok()) << session.status();
  if (session.ok()) session->reset();
  EXPECT_LT(absl::Now() - before, absl::Seconds(10));
  go.set_value();
}

}  // namespace
}  // namespace ringmaster
