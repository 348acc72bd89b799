// Runs that lose a process and go on: workers, the coordinator, the agent, everybody. What is
// asserted: the run ends well, every sample counted once, and says what it survived.

#include <signal.h>
#include <sys/mount.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/integration/run_fixture.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

constexpr int kSamples = 1003;
constexpr int kEpochs = 4;
// 4 x 32 steps of 20 ms: some seconds, so that there is time to break something.
const std::pair<std::string, std::string> kSlow = {"RINGMASTER_FAULT", "slow-step:20"};

class RestartTest : public RunTest {
 protected:
  void SetUp() override {
    RunTest::SetUp();
    WriteSmallDataset("small", kSamples, 50, 8, 3);
  }

  std::pair<Running, std::string> StartSlowTraining(const std::vector<std::string>& more = {}) {
    std::vector<std::string> args = {
        "train",     "--backend", "cpu",      "--data-dir",          "small",
        "--workers", "3",         "--epochs", absl::StrCat(kEpochs), "--global-batch",
        "32",        "--run-dir", "run",      "--checkpoint-every",  "10"};
    args.insert(args.end(), more.begin(), more.end());
    return StartTraining(args, {kSlow});
  }

  // The process ids whose command line has `part`.
  std::vector<int> PidsOf(const std::string& part) const {
    std::vector<int> pids;
    for (const RunningProcess& process : ProcessesIn(directory())) {
      if (process.command_line.find(part) != std::string::npos) pids.push_back(process.pid);
    }
    return pids;
  }
  static constexpr char kCoordinator[] = "ringmaster-coordinator ";
  static constexpr char kAgent[] = "ringmaster-worker --";
  static constexpr char kRank[] = "ringmaster-worker process";

  // Waits until `ringmaster status` says `what`.
  bool UntilStatus(Running* train, const std::string& address, const std::string& what) {
    return train->Until([&] {
      return Run("ringmaster", {"status", "--coordinator", address}).out.find(what) !=
             std::string::npos;
    });
  }

  void ExpectExactlyOnce() {
    const nlohmann::json report = ReadJson("run/report.json");
    EXPECT_EQ(report.value("samples_committed", 0), kEpochs * kSamples);
    EXPECT_EQ(report.value("samples_expected", 0), kEpochs * kSamples);
    EXPECT_EQ(report.value("lost_samples", -1), 0);
    EXPECT_EQ(report.value("doubled_samples", -1), 0);
    EXPECT_EQ(report["epoch_seconds"].size(), static_cast<size_t>(kEpochs));
  }
};

TEST_F(RestartTest, KilledWorkerIsStartedAnew) {
  auto [train, address] = StartSlowTraining();
  const std::vector<int> ranks = PidsOf(kRank);
  ASSERT_EQ(ranks.size(), 3u);
  ASSERT_EQ(kill(ranks[1], SIGKILL), 0);
  EXPECT_TRUE(UntilStatus(&train, address, "1 survived")) << train.error();
  EXPECT_TRUE(train.Wait().ok()) << train.error();
  EXPECT_THAT(train.error(), HasSubstr(absl::StrCat("pid ", ranks[1], ", was killed by SIGKILL")));
  EXPECT_THAT(train.error(), HasSubstr("it is started anew"));
  ExpectExactlyOnce();
  EXPECT_EQ(ReadJson("run/report.json").value("failures_survived", 0), 1);
}

TEST_F(RestartTest, KilledCoordinatorIsStartedAgainAndRecognised) {
  auto [train, address] = StartSlowTraining();
  const std::vector<int> ranks = PidsOf(kRank);
  const std::vector<int> coordinator = PidsOf(kCoordinator);
  ASSERT_EQ(coordinator.size(), 1u);
  ASSERT_EQ(kill(coordinator[0], SIGKILL), 0);
  EXPECT_TRUE(UntilStatus(&train, address, "training")) << train.error();
  EXPECT_EQ(PidsOf(kRank), ranks);  // the same processes went on
  EXPECT_TRUE(train.Wait().ok()) << train.error();
  EXPECT_THAT(train.error(), HasSubstr("the coordinator was killed by SIGKILL (signal 9); it is"));
  ExpectExactlyOnce();
}

TEST_F(RestartTest, KilledAgentIsStartedAgainWithItsProcesses) {
  auto [train, address] = StartSlowTraining();
  const std::vector<int> agent = PidsOf(kAgent);
  ASSERT_EQ(agent.size(), 1u);
  ASSERT_EQ(kill(agent[0], SIGKILL), 0);
  EXPECT_TRUE(train.Wait().ok()) << train.error();
  EXPECT_THAT(train.error(),
              HasSubstr("the agent was killed by SIGKILL (signal 9); it is started"));
  ExpectExactlyOnce();
}

TEST_F(RestartTest, EverybodyKilledAtOnce) {
  auto [train, address] = StartSlowTraining();
  std::vector<int> all = PidsOf(kRank);
  for (const int pid : PidsOf(kCoordinator)) all.push_back(pid);
  ASSERT_EQ(all.size(), 4u);
  for (const int pid : all) EXPECT_EQ(kill(pid, SIGKILL), 0);
  EXPECT_TRUE(train.Wait().ok()) << train.error();
  ExpectExactlyOnce();
}

TEST_F(RestartTest, InterruptedRunGoesOn) {
  {
    auto [train, address] = StartSlowTraining();
    train.child().Signal(SIGINT);
    EXPECT_EQ(train.Wait(absl::Seconds(15)), (ExitStatus{130, 0})) << train.error();
    EXPECT_THAT(train.error(), HasSubstr("stopped; go on with: ringmaster train --run-dir"));
    EXPECT_TRUE(Leftovers().empty());
  }
  auto [train, address] = StartSlowTraining();
  EXPECT_TRUE(train.Wait().ok()) << train.error();
  ExpectExactlyOnce();
}

TEST_F(RestartTest, KilledTrainGoesOnToo) {
  {
    auto [train, address] = StartSlowTraining();
    kill(train.child().pid(), SIGKILL);
    train.Wait();
    EXPECT_TRUE(Leftovers().empty());
  }
  auto [train, address] = StartSlowTraining();
  EXPECT_TRUE(train.Wait().ok()) << train.error();
  ExpectExactlyOnce();
}

TEST_F(RestartTest, FinishedRunPrintsItsResultAgain) {
  const std::vector<std::string> args = {
      "train", "--backend", "cpu", "--data-dir", "small", "--epochs", "1", "--run-dir", "run"};
  ASSERT_TRUE(Run("ringmaster", args).status.ok());
  const std::string report = ReadFile("run/report.json");
  const Captured again = Run("ringmaster", args);
  EXPECT_TRUE(again.status.ok()) << again.error;
  EXPECT_THAT(again.out, HasSubstr("accuracy"));
  EXPECT_EQ(ReadFile("run/report.json"), report);
}

TEST_F(RestartTest, FewerThanAllWorkersWillDo) {
  auto [train, address] = StartSlowTraining({"--workers", "1:3"});
  for (const int pid : PidsOf(kRank)) kill(pid, SIGKILL);
  EXPECT_TRUE(train.Wait().ok()) << train.error();
  ExpectExactlyOnce();
}

TEST_F(RestartTest, NoFailureAllowedEndsTheRunWithItsCause) {
  auto [train, address] = StartSlowTraining({"--max-failures", "0"});
  const std::vector<int> ranks = PidsOf(kRank);
  ASSERT_EQ(ranks.size(), 3u);
  ASSERT_EQ(kill(ranks[1], SIGKILL), 0);
  EXPECT_EQ(train.Wait(), (ExitStatus{1, 0})) << train.error();
  EXPECT_THAT(train.error(), HasSubstr(absl::StrCat("pid ", ranks[1])));
  EXPECT_TRUE(Leftovers().empty());
}

// Its heart beats on, but its device gives the aborted step never up: the process ends and leaves
// the place to another.
TEST_F(RestartTest, HangingDeviceCostsItsProcess) {
  const Captured run =
      Run("ringmaster",
          {"train", "--backend", "cpu", "--data-dir", "small", "--workers", "3", "--epochs", "4",
           "--global-batch", "32", "--run-dir", "run", "--patience", "1"},
          {{"RINGMASTER_FAULT", "hang-step:20"}});
  EXPECT_EQ(run.status, (ExitStatus{0, 0})) << run.error;
  EXPECT_THAT(run.error, HasSubstr("no step was finished for"));
  EXPECT_THAT(run.error, HasSubstr("the device has not given up an aborted step in time"));
  ExpectExactlyOnce();
}

// Neither journal nor logs nor checkpoints find room, and at the end not even the weights: all of
// it is told, and training goes on to its end.
TEST_F(RestartTest, FullDiskStopsNoTraining) {
  const std::string disk = Path("disk");
  std::filesystem::create_directory(disk);
  if (mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=32k") != 0) {
    GTEST_SKIP() << "a file system of 32 KiB cannot be mounted: " << std::strerror(errno);
  }
  Captured run =
      Run("ringmaster", {"train", "--backend", "cpu", "--data-dir", "small", "--workers", "2",
                         "--epochs", "8", "--global-batch", "8", "--run-dir", "disk/run"});
  EXPECT_EQ(umount(disk.c_str()), 0) << std::strerror(errno);
  EXPECT_EQ(run.status, (ExitStatus{1, 0})) << run.error;
  EXPECT_THAT(run.out, HasSubstr("8,024 of 8,024 samples"));
  EXPECT_THAT(run.error, HasSubstr("the journal cannot be written, training goes on"));
  EXPECT_THAT(run.error, HasSubstr("no checkpoint at epoch 1, step 0, training goes on"));
  EXPECT_THAT(run.error, HasSubstr("weights.safetensors: No space left on device"));
}

}  // namespace
}  // namespace ringmaster
