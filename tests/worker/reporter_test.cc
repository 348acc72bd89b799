#include "worker/reporter.h"

#include <atomic>
#include <future>
#include <memory>
#include <thread>

#include "gtest/gtest.h"
#include "tests/worker/session_coordinator.h"

namespace ringmaster {
namespace {

constexpr uint32_t kSteps = 100;

FinishedStep Step(uint32_t step) {
  FinishedStep finished;
  finished.step = step;
  finished.reduced.record.samples = 1;
  return finished;
}

// Rank 0 of a generation whose coordinator acknowledges `acknowledged_` of the records it gets.
class ReporterTest : public ::testing::Test {
 protected:
  void Start(size_t spool_bytes) {
    coordinator_.session = [this](ScriptedCoordinator::Stream* stream) { return Serve(stream); };
    coordinator_.Start();
    stub_ = Training::NewStub(MakeChannel(coordinator_.address()));
    CoordinatorLink::Options link;
    link.hello = [] { return Hello(); };
    link_ = std::make_unique<CoordinatorLink>(stub_.get(), std::move(link));
    ASSERT_EQ(link_->AwaitPlace(/*told=*/1), CoordinatorLink::Event::kAssigned);
    Reporter::Options options;
    options.link = link_.get();
    options.stub = stub_.get();
    options.held = &held_;
    options.timeline = Timeline(kSteps, 1);
    options.heartbeat_interval = absl::Milliseconds(20);
    options.spool_bytes = spool_bytes;
    reporter_ = std::make_unique<Reporter>(options);
    ASSERT_EQ(reporter_->Begin(link_->TakeAssignment(), 0, /*own_state=*/false), absl::OkStatus());
  }

  void TearDown() override {
    reporter_.reset();
    link_.reset();
  }

  grpc::Status Serve(ScriptedCoordinator::Stream* stream) {
    WorkerMessage message;
    stream->Read(&message);
    CoordinatorMessage answer;
    answer.mutable_welcome();
    stream->Write(answer);
    answer.set_generation(1);
    answer.mutable_assignment()->set_world_size(1);
    stream->Write(answer);
    while (stream->Read(&message)) {
      received_ += message.records().records_size();
      received_.notify_all();
      answer.mutable_ack()->set_records_received(std::min<uint64_t>(received_, acknowledged_));
      stream->Write(answer);
    }
    return grpc::Status::OK;
  }

  std::atomic<uint64_t> received_{0};
  std::atomic<uint64_t> acknowledged_{0};
  ScriptedCoordinator coordinator_;
  std::unique_ptr<Training::Stub> stub_;
  HeldState held_;
  std::unique_ptr<CoordinatorLink> link_;
  std::unique_ptr<Reporter> reporter_;
};

TEST_F(ReporterTest, FirstRecordOfAGenerationGoesAtOnce) {
  Start(1 << 20);
  reporter_->OnStep(Step(0));
  received_.wait(0);
  EXPECT_EQ(received_, 1u);
}

TEST_F(ReporterTest, FullOfUnacknowledgedRecordsTrainingWaitsForTheCoordinator) {
  Start(/*spool_bytes=*/200);
  std::atomic<uint32_t> finished{0};
  auto training = std::async(std::launch::async, [&] {
    for (uint32_t step = 0; step < kSteps; ++step) {
      reporter_->OnStep(Step(step));
      ++finished;
    }
  });
  // It never ends, and all that there was room for has come.
  EXPECT_EQ(training.wait_for(std::chrono::milliseconds(400)), std::future_status::timeout);
  EXPECT_EQ(received_, finished + 1);
  EXPECT_LT(finished, kSteps);
  acknowledged_ = kSteps;
  training.get();
  EXPECT_EQ(finished, kSteps);
  EXPECT_TRUE(reporter_->Flush(1, absl::InfiniteFuture()));
  EXPECT_EQ(received_, kSteps);
}

}  // namespace
}  // namespace ringmaster
