// Real worker processes under a coordinator that does what the test says. The proof is the same
// everywhere: whatever happened, the records are those of an undisturbed run, each once, and the
// final state is the same to the bit.

#include "worker/process.h"

#include <signal.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/dataset.h"
#include "common/settings.h"
#include "common/sha256.h"
#include "common/subprocess.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/fake_coordinator.h"
#include "worker/data_file.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kTrain = 600;
constexpr uint32_t kTest = 50;
constexpr uint32_t kBatch = 20;  // 30 steps an epoch
constexpr uint32_t kEpochs = 3;
constexpr uint32_t kStepsPerEpoch = kTrain / kBatch;
constexpr uint64_t kRecords = kEpochs * (kStepsPerEpoch + 1);
constexpr int kDataFd = 10;

std::string BigEndian(uint32_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift & 0xff);
  return bytes;
}

// IDX: images of 4 x 4, and labels of two classes that show in them.
std::string Images(uint32_t count) {
  std::string bytes = BigEndian(2051) + BigEndian(count) + BigEndian(4) + BigEndian(4);
  for (uint32_t i = 0; i < count * 16; ++i) {
    bytes += static_cast<char>((i * 37 + i / 16 * 11) % 100 + (i / 16 % 2) * (i % 5) * 30);
  }
  return bytes;
}
std::string Labels(uint32_t count) {
  std::string bytes = BigEndian(2049) + BigEndian(count);
  for (uint32_t i = 0; i < count; ++i) bytes += static_cast<char>(i % 2);
  return bytes;
}

DataFile SmallData() {
  DataFile data;
  data.run_id = "run-1";
  const std::string bytes[] = {Images(kTrain), Labels(kTrain), Images(kTest), Labels(kTest)};
  for (int i = 0; i < kDatasetFiles; ++i) {
    data.files[i] = {kDatasetFileNames[i], bytes[i], Sha256Hex(bytes[i])};
  }
  data.digest = DatasetDigest(data.files);
  return data;
}

TrainingConfig Config(const DataFile& data) {
  TrainingConfig config;
  for (uint32_t width : {16, 8, 2}) config.add_layers(width);
  config.set_optimizer(ADAM);
  config.set_learning_rate(1e-3f);
  config.set_beta1(0.9f);
  config.set_beta2(0.999f);
  config.set_epsilon(1e-7f);
  config.set_seed(5);
  config.set_global_batch(kBatch);
  config.set_epochs(kEpochs);
  config.set_num_train_samples(kTrain);
  config.set_num_test_samples(kTest);
  config.set_data_digest(data.digest);
  return config;
}

class ProcessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    data_ = SmallData();
    auto fd = MakeDataFile();
    ASSERT_TRUE(fd.ok()) << fd.status();
    ASSERT_TRUE(WriteDataFile(fd->get(), data_).ok());
    data_fd_ = *std::move(fd);
    coordinator_ = std::make_unique<FakeCoordinator>(Config(data_));
    coordinator_->Start();
  }

  // Each step takes `slow_ms` longer.
  void StartWorker(int local_rank, int slow_ms = 0, int join_timeout_s = 60) {
    ChildOptions options;
    options.argv = {RINGMASTER_WORKER,    "process",
                    "--coordinator",      coordinator_->address(),
                    "--data-fd",          absl::StrCat(kDataFd),
                    "--local-rank",       absl::StrCat(local_rank),
                    "--local-world-size", "3",
                    "--node-id",          "node",
                    "--backend",          "cpu",
                    "--join-timeout",     absl::StrCat(join_timeout_s)};
    if (slow_ms > 0) {
      options.set_environment = {{"RINGMASTER_FAULT", absl::StrCat("slow-step:", slow_ms)}};
    }
    options.descriptors = {{data_fd_.get(), kDataFd}};
    auto child = Child::Start(options);
    ASSERT_TRUE(child.ok()) << child.status();
    workers_.resize(std::max<size_t>(workers_.size(), local_rank + 1));
    workers_[local_rank] = std::make_unique<Child>(*std::move(child));
  }

  // Starts three and gives them a generation. Returns their incarnations by rank.
  std::vector<uint64_t> StartThree(int slow_ms) {
    for (int i = 0; i < 3; ++i) StartWorker(i, slow_ms);
    const std::vector<uint64_t> members = coordinator_->AwaitStanding(3);
    coordinator_->Assign(members);
    return members;
  }

  void AwaitRecords(size_t count) {
    coordinator_->Await("records", [&] { return coordinator_->records.size() >= count; });
  }

  // Waits until three have finished, ends the run, and checks all that an undisturbed run leaves.
  void ExpectUndisturbedEnd() {
    std::string digest;
    coordinator_->Await("the end of training", [&] {
      const std::vector<uint64_t> members = coordinator_->Connected();
      return members.size() == 3 && std::all_of(members.begin(), members.end(), [&](uint64_t i) {
               const auto& finished = coordinator_->workers[i].finished;
               if (finished) digest = finished->state_digest();
               return finished && finished->state_digest() == digest;
             });
    });
    EXPECT_EQ(coordinator_->states.count(digest), 1u) << "the final state was not handed in";
    coordinator_->End(0);
    for (const auto& worker : workers_) {
      EXPECT_EQ(worker->WaitFor(absl::Seconds(20)), (ExitStatus{0, 0}));
    }
    ExpectRecordsOfAnUndisturbedRun(coordinator_->records);
    EXPECT_EQ(digest, Undisturbed().digest);
  }

  struct Result {
    std::vector<GlobalRecord> records;
    std::string digest;
  };

  // The same on every machine and at every time: computed once, in a generation of three.
  static const Result& Undisturbed() {
    static const Result* const result = [] {
      auto* const computed = new Result;
      struct Straight : ProcessTest {
        void TestBody() override {}
      } straight;
      straight.SetUp();
      const std::vector<uint64_t> members = straight.StartThree(0);
      FakeCoordinator& coordinator = *straight.coordinator_;
      coordinator.Await("the undisturbed run", [&] {
        return std::all_of(members.begin(), members.end(),
                           [&](uint64_t i) { return coordinator.workers[i].finished; });
      });
      computed->digest = coordinator.Of(members[0]).finished->state_digest();
      computed->records = coordinator.records;
      coordinator.End(0);
      for (const auto& worker : straight.workers_) worker->WaitFor(absl::Seconds(20));
      return computed;
    }();
    return *result;
  }

  static void ExpectRecordsOfAnUndisturbedRun(const std::vector<GlobalRecord>& records) {
    const std::vector<GlobalRecord>& wanted = Undisturbed().records;
    ASSERT_EQ(wanted.size(), kRecords);
    ASSERT_EQ(records.size(), kRecords);
    for (size_t i = 0; i < kRecords; ++i) {
      EXPECT_EQ(records[i].loss_sum_quanta(), wanted[i].loss_sum_quanta()) << "record " << i;
      EXPECT_EQ(records[i].sample_digest(), wanted[i].sample_digest()) << "record " << i;
      EXPECT_EQ(records[i].samples(), wanted[i].samples()) << "record " << i;
      EXPECT_EQ(records[i].correct(), wanted[i].correct()) << "record " << i;
    }
  }

  DataFile data_;
  UniqueFd data_fd_;
  std::unique_ptr<FakeCoordinator> coordinator_;
  std::vector<std::unique_ptr<Child>> workers_;
};

TEST_F(ProcessTest, StandsWithNothingTrainsAndEnds) {
  const std::vector<uint64_t> members = StartThree(0);
  ExpectUndisturbedEnd();
  EXPECT_EQ(coordinator_->workers.size(), 3u);
  EXPECT_EQ(coordinator_->sent_again, 0u);
  for (const uint64_t member : members) EXPECT_EQ(coordinator_->workers[member].connections, 1);
}

TEST_F(ProcessTest, AbortedGenerationsGoOnInTheNextWithoutATrace) {
  std::vector<uint64_t> members = StartThree(3);
  for (const size_t records : {10, 31, 50}) {
    AwaitRecords(records);
    coordinator_->Abort("the test wants it");
    members = coordinator_->AwaitStanding(3);
    for (const uint64_t member : members) {
      const Standing standing = *coordinator_->Of(member).standing;
      EXPECT_EQ(standing.reason(), "");
      EXPECT_EQ(standing.state_digest().size(), 64u);
    }
    coordinator_->Assign(members);
  }
  ExpectUndisturbedEnd();
}

TEST_F(ProcessTest, SurvivorsOfAKilledRankStandAndItsSuccessorTakesTheirState) {
  const std::vector<uint64_t> members = StartThree(3);
  AwaitRecords(20);
  workers_[1]->Signal(SIGKILL);
  workers_[1]->Wait();
  StartWorker(1);
  std::vector<uint64_t> again = coordinator_->AwaitStanding(3);
  ASSERT_EQ(again.size(), 3u);
  EXPECT_EQ(again[0], members[0]);
  EXPECT_NE(again[1], members[1]);
  EXPECT_NE(coordinator_->Of(again[0]).standing->reason(), "");
  EXPECT_EQ(coordinator_->Of(again[1]).standing->generation(), 0u);
  EXPECT_EQ(coordinator_->Of(again[1]).standing->state_digest(), "");
  coordinator_->Assign(again);
  ExpectUndisturbedEnd();
  EXPECT_GE(coordinator_->states.size(), 2u) << "rank 0 handed its state in for the newcomer";
}

TEST_F(ProcessTest, KeepsTrainingWithoutTheCoordinator) {
  const std::vector<uint64_t> members = StartThree(2);
  AwaitRecords(10);
  const size_t before = coordinator_->RecordCount();
  coordinator_->Stop();
  coordinator_->Start();
  coordinator_->Await("recognised members", [&] {
    return std::all_of(members.begin(), members.end(), [this](uint64_t i) {
      return coordinator_->workers[i].connected && coordinator_->workers[i].connections == 2;
    });
  });
  for (const uint64_t member : members) EXPECT_TRUE(coordinator_->Of(member).recognised);
  ExpectUndisturbedEnd();
  EXPECT_GT(coordinator_->RecordCount(), before);
  EXPECT_EQ(coordinator_->workers.size(), 3u) << "nobody became another";
}

// It comes back to finished workers and has lost the final state: all is said again.
TEST_F(ProcessTest, FinalStateAndFinishedAreToldToEachCoordinator) {
  const std::vector<uint64_t> members = StartThree(0);
  const auto all_finished = [&] {
    return std::all_of(members.begin(), members.end(),
                       [this](uint64_t i) { return coordinator_->workers[i].finished; });
  };
  coordinator_->Await("the first end", all_finished);
  coordinator_->Stop();
  coordinator_->states.clear();
  for (auto& [incarnation, worker] : coordinator_->workers) worker.finished.reset();
  coordinator_->Start();
  coordinator_->Await("the second end", all_finished);
  ExpectUndisturbedEnd();
}

TEST_F(ProcessTest, LostAfterItsEndAGenerationStandsAtTheEnd) {
  const std::vector<uint64_t> members = StartThree(0);
  coordinator_->Await("the end", [&] {
    return std::all_of(members.begin(), members.end(),
                       [this](uint64_t i) { return coordinator_->workers[i].finished; });
  });
  coordinator_->Abort("the test wants it");
  const std::vector<uint64_t> again = coordinator_->AwaitStanding(3);
  for (const uint64_t member : again) {
    EXPECT_EQ(coordinator_->Of(member).standing->position().phase(), Position::DONE);
  }
  coordinator_->Assign(again);
  ExpectUndisturbedEnd();
}

TEST_F(ProcessTest, PutOutItComesBackAsAnotherWithWhatItHolds) {
  const std::vector<uint64_t> members = StartThree(3);
  AwaitRecords(20);
  coordinator_->PutOut(members[2]);
  coordinator_->Abort("one was put out");
  const std::vector<uint64_t> again = coordinator_->AwaitStanding(3);
  ASSERT_EQ(again.size(), 3u);
  EXPECT_EQ(again[0], members[0]);
  EXPECT_NE(again[2], members[2]);
  EXPECT_EQ(coordinator_->Of(again[2]).generation, 0u);
  EXPECT_EQ(coordinator_->Of(again[2]).standing->generation(), 1u);
  coordinator_->Assign(again);
  ExpectUndisturbedEnd();
}

TEST_F(ProcessTest, RegroupStopsAllAtOnePlace) {
  std::vector<uint64_t> members = StartThree(3);
  AwaitRecords(10);
  coordinator_->Regroup(members[1]);
  members = coordinator_->AwaitStanding(3);
  const Standing first = *coordinator_->Of(members[0]).standing;
  EXPECT_GT(first.position().step(), 0u);
  for (const uint64_t member : members) {
    const Standing standing = *coordinator_->Of(member).standing;
    EXPECT_EQ(standing.position().SerializeAsString(), first.position().SerializeAsString());
    EXPECT_EQ(standing.state_digest(), first.state_digest());
    EXPECT_EQ(standing.generation(), 1u);
    EXPECT_EQ(standing.reason(), "");
  }
  coordinator_->Assign(members);
  ExpectUndisturbedEnd();
}

TEST_F(ProcessTest, ToldToStopRankZeroHandsOverWithinAStepAndASecond) {
  constexpr int kStepMs = 100;
  const std::vector<uint64_t> members = StartThree(kStepMs);
  AwaitRecords(3);
  const absl::Time start = absl::Now();
  workers_[0]->Signal(SIGTERM);
  EXPECT_EQ(workers_[0]->Wait(), (ExitStatus{143, 0}));
  EXPECT_LT(absl::Now() - start, 2 * absl::Milliseconds(kStepMs) + absl::Seconds(1));
  const std::vector<uint64_t> left = coordinator_->AwaitStanding(2);
  ASSERT_EQ(left.size(), 2u);
  const FakeCoordinator::Worker leaver = coordinator_->Of(members[0]);
  ASSERT_TRUE(leaver.leaving.has_value());
  EXPECT_THAT(leaver.leaving->reason(), HasSubstr("SIGTERM"));
  const Standing standing = *coordinator_->Of(left[0]).standing;
  EXPECT_EQ(standing.reason(), "") << "the others stopped in good order";
  EXPECT_EQ(coordinator_->states.count(standing.state_digest()), 1u) << "its state was handed in";
  EXPECT_EQ(coordinator_->RecordCount(), standing.position().step()) << "and its records were sent";
  StartWorker(0);
  coordinator_->Assign(coordinator_->AwaitStanding(3));
  ExpectUndisturbedEnd();
}

TEST_F(ProcessTest, ToldToStopItLeavesThoughNobodyAnswers) {
  const std::vector<uint64_t> members = StartThree(3);
  AwaitRecords(10);
  workers_[1]->Signal(SIGSTOP);
  coordinator_->Stop();
  const absl::Time start = absl::Now();
  workers_[0]->Signal(SIGTERM);
  EXPECT_EQ(workers_[0]->Wait(), (ExitStatus{143, 0}));
  EXPECT_LT(absl::Now() - start, absl::Milliseconds(2500));
}

TEST_F(ProcessTest, ToldToStopBeforeItHasAPlaceItSaysSo) {
  StartWorker(0);
  const std::vector<uint64_t> waiting = coordinator_->AwaitStanding(1);
  workers_[0]->Signal(SIGINT);
  EXPECT_EQ(workers_[0]->WaitFor(absl::Seconds(2)), (ExitStatus{130, 0}));
  coordinator_->Await("Leaving",
                      [&] { return coordinator_->workers[waiting[0]].leaving.has_value(); });
}

// Rank 2 of the generation is nobody: the others wait for it until they are told not to.
TEST_F(ProcessTest, RendezvousEndsWithItsGeneration) {
  for (int i = 0; i < 2; ++i) StartWorker(i);
  std::vector<uint64_t> members = coordinator_->AwaitStanding(2);
  ASSERT_EQ(members.size(), 2u);
  constexpr uint64_t kNobody = 1;
  coordinator_->workers[kNobody].standing.emplace();
  coordinator_->Assign({members[0], members[1], kNobody});
  const absl::Time start = absl::Now();
  coordinator_->Abort("rank 2 is nobody");
  EXPECT_EQ(coordinator_->AwaitStanding(2), members);
  EXPECT_LT(absl::Now() - start, absl::Milliseconds(500));
  for (const uint64_t member : members) EXPECT_EQ(coordinator_->Of(member).standing->reason(), "");
}

TEST_F(ProcessTest, StatesAreHandedInOnTheWay) {
  coordinator_->checkpoint_every_steps = 7;
  StartThree(5);
  ExpectUndisturbedEnd();
  int in_epoch = 0;
  for (const Position& position : coordinator_->states_put) in_epoch += position.step() > 0;
  EXPECT_GE(in_epoch, 5);
}

TEST_F(ProcessTest, EndsAsTheRunEnds) {
  StartWorker(0);
  coordinator_->AwaitStanding(1);
  coordinator_->End(1);
  EXPECT_EQ(workers_[0]->WaitFor(absl::Seconds(20)), (ExitStatus{kExitConsequence, 0}));
}

TEST_F(ProcessTest, GivesUpOnACoordinatorThatStaysAway) {
  StartWorker(0, 0, /*join_timeout_s=*/1);
  coordinator_->AwaitStanding(1);
  coordinator_->Stop();
  EXPECT_EQ(workers_[0]->WaitFor(absl::Seconds(20)), (ExitStatus{kExitGaveUp, 0}));
}

TEST_F(ProcessTest, OwnFailureIsToldAndEndsIt) {
  for (int i = 0; i < 3; ++i) StartWorker(i);
  const std::vector<uint64_t> members = coordinator_->AwaitStanding(3);
  coordinator_->Assign(members);
  AwaitRecords(kRecords);
  coordinator_->Abort("the test wants it");
  const std::vector<uint64_t> again = coordinator_->AwaitStanding(3);
  coordinator_->records.resize(5);  // the others are lost to everybody
  coordinator_->Assign(again);
  EXPECT_EQ(workers_[0]->WaitFor(absl::Seconds(20)), (ExitStatus{kExitFailed, 0}));
  coordinator_->Await("the failure",
                      [&] { return coordinator_->workers[again[0]].failure.has_value(); });
  EXPECT_THAT(coordinator_->Of(again[0]).failure->message(), HasSubstr("are lost"));
}

}  // namespace
}  // namespace ringmaster
