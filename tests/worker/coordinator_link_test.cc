#include "worker/coordinator_link.h"

#include <atomic>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/session_coordinator.h"
#include "tests/worker/silent_proxy.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;
using Event = CoordinatorLink::Event;
using Stream = ScriptedCoordinator::Stream;

class CountingListener : public GenerationListener {
 public:
  void OnOver(const std::string& why) override {
    reason = why;
    ++overs;
    overs.notify_all();
  }
  void OnRegroup(const std::string&) override {
    ++regroups;
    regroups.notify_all();
  }

  std::string reason;
  std::atomic<int> overs{0};
  std::atomic<int> regroups{0};
};

CoordinatorMessage Welcoming(bool recognised = false, uint64_t received = 0) {
  CoordinatorMessage message;
  message.set_run_id("run-1");
  message.mutable_welcome()->mutable_config()->set_epochs(3);
  message.mutable_welcome()->set_recognised(recognised);
  message.mutable_welcome()->set_records_received(received);
  return message;
}

CoordinatorMessage Assigning(uint64_t generation) {
  CoordinatorMessage message;
  message.set_generation(generation);
  message.mutable_assignment()->set_rank(2);
  return message;
}

CoordinatorMessage Aborting(uint64_t generation) {
  CoordinatorMessage message;
  message.set_generation(generation);
  message.mutable_abort()->set_reason("rank 1 is gone");
  return message;
}

grpc::Status Drain(Stream* stream) {
  WorkerMessage message;
  while (stream->Read(&message)) {
  }
  return grpc::Status::OK;
}

class CoordinatorLinkTest : public ::testing::Test {
 protected:
  // The n-th stream (from 0) does `serve(n, stream)` after its Hello was read.
  void Serve(std::function<grpc::Status(int, Stream*)> serve) {
    coordinator_.session = [this, serve](Stream* stream) {
      WorkerMessage hello;
      if (!stream->Read(&hello)) return grpc::Status::OK;
      int number = 0;
      {
        MutexLock lock(&mutex_);
        number = static_cast<int>(hellos_.size());
        hellos_.push_back(hello);
      }
      return serve(number, stream);
    };
    coordinator_.Start();
    address_ = coordinator_.address();
  }

  CoordinatorLink& Dial(absl::Duration give_up_after = absl::Seconds(600)) {
    stub_ = Training::NewStub(MakeChannel(address_));
    CoordinatorLink::Options options;
    options.address = address_;
    options.hello = [] { return Hello(); };
    options.give_up_after = give_up_after;
    options.welcome_timeout = welcome_timeout_;
    link_ = std::make_unique<CoordinatorLink>(stub_.get(), std::move(options));
    return *link_;
  }

  WorkerMessage HelloNumber(size_t i) {
    MutexLock lock(&mutex_);
    return hellos_.at(i);
  }

  std::string address_ = "127.0.0.1:1";
  absl::Duration welcome_timeout_ = absl::Seconds(20);
  Mutex mutex_;
  std::vector<WorkerMessage> hellos_;
  ScriptedCoordinator coordinator_;
  std::unique_ptr<Training::Stub> stub_;
  std::unique_ptr<CoordinatorLink> link_;
};

TEST_F(CoordinatorLinkTest, MessagesCarryRunAndGeneration) {
  std::promise<WorkerMessage> got;
  Serve([&got](int, Stream* stream) {
    stream->Write(Welcoming());
    stream->Write(Assigning(4));
    WorkerMessage message;
    stream->Read(&message);
    got.set_value(message);
    return Drain(stream);
  });
  CoordinatorLink& link = Dial();
  const auto welcome = link.AwaitWelcome();
  ASSERT_TRUE(welcome.has_value());
  EXPECT_EQ(welcome->config().epochs(), 3u);
  EXPECT_EQ(link.run_id(), "run-1");
  ASSERT_EQ(link.AwaitPlace(/*told=*/1), Event::kAssigned);
  EXPECT_EQ(link.TakeAssignment().generation, 4u);
  EXPECT_TRUE(link.Send(WorkerMessage(), 1));
  const WorkerMessage message = got.get_future().get();
  EXPECT_EQ(message.run_id(), "run-1");
  EXPECT_EQ(message.generation(), 4u);
}

TEST_F(CoordinatorLinkTest, BreakIsMendedAsTheSameMemberAndTheGenerationGoesOn) {
  std::promise<void> go;
  Serve([&](int number, Stream* stream) {
    stream->Write(Welcoming(number > 0, 17));
    if (number > 0) return Drain(stream);
    stream->Write(Assigning(4));
    go.get_future().wait();
    return grpc::Status::OK;
  });
  CoordinatorLink& link = Dial();
  ASSERT_EQ(link.AwaitPlace(1), Event::kAssigned);
  link.TakeAssignment();
  CountingListener listener;
  link.SetListener(&listener);
  go.set_value();
  ASSERT_EQ(link.AwaitOutcome(1), Event::kConnected);
  EXPECT_EQ(link.state().connection, 2u);
  EXPECT_EQ(link.state().records_received, 17u);
  EXPECT_EQ(HelloNumber(1).hello().incarnation(), HelloNumber(0).hello().incarnation());
  EXPECT_EQ(HelloNumber(1).generation(), 4u);
  EXPECT_EQ(HelloNumber(1).run_id(), "run-1");
  EXPECT_EQ(listener.overs, 0);
  EXPECT_FALSE(link.Send(WorkerMessage(), 1)) << "what was meant for the broken connection";
  EXPECT_TRUE(link.Send(WorkerMessage(), 2));
  link.SetListener(nullptr);
}

TEST_F(CoordinatorLinkTest, NotRecognisedEndsTheGeneration) {
  Serve([&](int number, Stream* stream) {
    stream->Write(Welcoming(/*recognised=*/false));
    if (number > 0) return Drain(stream);
    stream->Write(Assigning(4));
    return grpc::Status::OK;
  });
  CoordinatorLink& link = Dial();
  CountingListener listener;
  for (uint64_t told = 0; told < 2; told = link.state().connection) link.AwaitPlace(told);
  EXPECT_TRUE(link.state().over);
  link.SetListener(&listener);
  EXPECT_EQ(listener.overs, 1);
  EXPECT_EQ(link.AwaitPlace(0), Event::kConnected) << "the assignment went with the generation";
  link.SetListener(nullptr);
}

TEST_F(CoordinatorLinkTest, PutOutItJoinsAsAnother) {
  std::promise<void> go;
  Serve([&](int number, Stream* stream) {
    stream->Write(Welcoming());
    if (number > 0) return Drain(stream);
    stream->Write(Assigning(4));
    go.get_future().wait();
    return grpc::Status(grpc::StatusCode::ABORTED, "too slow");
  });
  CoordinatorLink& link = Dial();
  ASSERT_EQ(link.AwaitPlace(1), Event::kAssigned);
  link.TakeAssignment();
  CountingListener listener;
  link.SetListener(&listener);
  go.set_value();
  listener.overs.wait(0);
  EXPECT_THAT(listener.reason, HasSubstr("too slow"));
  ASSERT_EQ(link.AwaitPlace(1), Event::kConnected);
  EXPECT_NE(HelloNumber(1).hello().incarnation(), HelloNumber(0).hello().incarnation());
  EXPECT_EQ(HelloNumber(1).generation(), 0u);
  link.SetListener(nullptr);
}

TEST_F(CoordinatorLinkTest, TellsTheListenerOnceAndOnlyOfItsGeneration) {
  std::promise<void> go;
  Serve([&go](int, Stream* stream) {
    stream->Write(Welcoming());
    stream->Write(Assigning(4));
    go.get_future().wait();
    stream->Write(Aborting(3));
    CoordinatorMessage regroup;
    regroup.set_generation(4);
    regroup.mutable_regroup();
    stream->Write(regroup);
    stream->Write(regroup);
    stream->Write(Aborting(4));
    stream->Write(Aborting(4));
    CoordinatorMessage ack;
    ack.mutable_ack()->set_records_received(9);
    stream->Write(ack);
    return Drain(stream);
  });
  CoordinatorLink& link = Dial();
  ASSERT_EQ(link.AwaitPlace(1), Event::kAssigned);
  link.TakeAssignment();
  CountingListener listener;
  link.SetListener(&listener);
  std::atomic<int> wakes{0};
  link.SetWake([&wakes] {
    ++wakes;
    wakes.notify_all();
  });
  go.set_value();
  for (int seen = wakes; link.state().records_received < 9; seen = wakes) wakes.wait(seen);
  EXPECT_EQ(link.AwaitOutcome(1), Event::kOver);
  link.SetListener(nullptr);
  link.SetWake(nullptr);
  EXPECT_EQ(listener.overs, 1);
  EXPECT_EQ(listener.regroups, 1);
  EXPECT_EQ(listener.reason, "rank 1 is gone");
}

TEST_F(CoordinatorLinkTest, NoRoomNowIsTriedAgain) {
  Serve([](int number, Stream* stream) {
    if (number < 2) return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
    stream->Write(Welcoming());
    return Drain(stream);
  });
  EXPECT_TRUE(Dial().AwaitWelcome().has_value());
  EXPECT_EQ(HelloNumber(2).hello().incarnation(), HelloNumber(0).hello().incarnation());
}

TEST_F(CoordinatorLinkTest, SilenceIsTriedAgain) {
  welcome_timeout_ = absl::Milliseconds(50);
  Serve([](int number, Stream* stream) {
    if (number > 0) stream->Write(Welcoming());
    return Drain(stream);
  });
  EXPECT_TRUE(Dial().AwaitWelcome().has_value());
}

// The connection stays open and nothing comes over it: only pings find out.
TEST_F(CoordinatorLinkTest, PartitionIsNoticedAndMended) {
  Serve([](int number, Stream* stream) {
    stream->Write(Welcoming(number > 0));
    return Drain(stream);
  });
  SilentProxy proxy(std::stoi(address_.substr(address_.rfind(':') + 1)));
  address_ = proxy.address();
  CoordinatorLink& link = Dial();
  ASSERT_EQ(link.AwaitPlace(0), Event::kConnected);
  std::atomic<int> wakes{0};
  link.SetWake([&wakes] {
    ++wakes;
    wakes.notify_all();
  });
  const absl::Time start = absl::Now();
  proxy.SetSilent(true);
  for (int seen = wakes; link.state().connected; seen = wakes) wakes.wait(seen);
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  proxy.SetSilent(false);
  EXPECT_EQ(link.AwaitPlace(1), Event::kConnected);
  link.SetWake(nullptr);
}

// One stream that is open for long and says nothing either way: pings must not be its end.
TEST_F(CoordinatorLinkTest, QuietConnectionLasts) {
  Serve([](int, Stream* stream) {
    stream->Write(Welcoming());
    return Drain(stream);
  });
  CoordinatorLink& link = Dial();
  ASSERT_EQ(link.AwaitPlace(0), Event::kConnected);
  std::atomic<int> wakes{0};
  link.SetWake([&wakes] { ++wakes; });
  // As many pings as would be three strikes and out.
  absl::SleepFor(absl::Milliseconds(5 * kKeepaliveMs));
  EXPECT_TRUE(link.state().connected);
  EXPECT_EQ(wakes, 0);
  link.SetWake(nullptr);
}

TEST_F(CoordinatorLinkTest, RefusalIsFinal) {
  Serve([](int, Stream*) {
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "version 2 here, 1 there");
  });
  CoordinatorLink& link = Dial();
  EXPECT_FALSE(link.AwaitWelcome().has_value());
  EXPECT_EQ(link.end()->kind, LinkEnd::Kind::kRefused);
  EXPECT_EQ(link.end()->status, absl::FailedPreconditionError("version 2 here, 1 there"));
}

TEST_F(CoordinatorLinkTest, GivesUpWithAddressAndReason) {
  CoordinatorLink& link = Dial(absl::Milliseconds(200));
  EXPECT_EQ(link.AwaitPlace(0), Event::kEnded);
  EXPECT_EQ(link.end()->kind, LinkEnd::Kind::kGaveUp);
  const std::string message(link.end()->status.message());
  EXPECT_THAT(message, HasSubstr("could not reach the coordinator at 127.0.0.1:1 within 200ms. "
                                 "Last reason: "));
  EXPECT_THAT(message, HasSubstr("--join-timeout"));
}

TEST_F(CoordinatorLinkTest, EndOfRunAndStopEndEveryWait) {
  Serve([](int, Stream* stream) {
    stream->Write(Welcoming());
    CoordinatorMessage end;
    end.mutable_end()->set_exit_code(1);
    end.mutable_end()->set_reason("enough");
    stream->Write(end);
    return Drain(stream);
  });
  CoordinatorLink& link = Dial();
  EXPECT_EQ(link.AwaitPlace(1), Event::kEnded);
  EXPECT_EQ(link.AwaitOutcome(1), Event::kEnded);
  EXPECT_EQ(link.end()->exit_code, 1);
  link.Stop();
  EXPECT_EQ(link.end()->kind, LinkEnd::Kind::kEndOfRun) << "the first reason stays";

  address_ = "127.0.0.1:1";
  CoordinatorLink& other = Dial();
  other.Stop();
  EXPECT_EQ(other.AwaitPlace(0), Event::kEnded);
  EXPECT_EQ(other.end()->kind, LinkEnd::Kind::kStopped);
}

}  // namespace
}  // namespace ringmaster
