// Runs that go wrong: lost workers where none may be lost, wrong input, wrong usage, signals. What
// is asserted: the exit code, that the message names the cause, and that nothing is left behind.

#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "tests/integration/run_fixture.h"

namespace ringmaster {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

const std::pair<std::string, std::string> kSlow = {"RINGMASTER_FAULT", "slow-step:20"};

std::string HostName() {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  return name;
}

class FailureTest : public RunTest {
 protected:
  std::pair<Running, std::string> StartSlowTraining(int workers) {
    return StartTraining(
        {"train", "--backend", "cpu", "--workers", absl::StrCat(workers), "--max-failures", "0"},
        {kSlow});
  }

  // The process id of `rank`, from `ringmaster status`.
  int PidOfRank(const std::string& address, int rank) {
    const std::string out = Run("ringmaster", {"status", "--coordinator", address}).out;
    const size_t line = out.find(absl::StrCat("\nrank ", rank, " "));
    const size_t at = out.find("pid ", line);
    EXPECT_NE(line, std::string::npos) << out;
    return line == std::string::npos ? 0 : std::atoi(out.c_str() + at + 4);
  }
};

TEST_F(FailureTest, KilledWorkerEndsTheRunWithinFiveSecondsAndIsNamed) {
  auto [train, address] = StartSlowTraining(3);
  const int pid = PidOfRank(address, 1);
  ASSERT_GT(pid, 0);
  const absl::Time before = absl::Now();
  ASSERT_EQ(kill(pid, SIGKILL), 0);
  const ExitStatus status = train.Wait();
  EXPECT_LT(absl::Now() - before, absl::Seconds(5));
  EXPECT_EQ(status, (ExitStatus{1, 0})) << train.error();
  EXPECT_THAT(train.error(), HasSubstr("rank 1 of 3"));
  EXPECT_THAT(train.error(), HasSubstr("was killed by SIGKILL (signal 9)"));
  EXPECT_THAT(train.error(), HasSubstr(HostName()));
  EXPECT_THAT(train.error(), HasSubstr(absl::StrCat("pid ", pid)));
}

// It hears no signal but SIGKILL, and its connections stay open.
TEST_F(FailureTest, StoppedWorkerEndsTheRunWithinFiveSecondsAndIsNamed) {
  auto [train, address] = StartSlowTraining(3);
  const int pid = PidOfRank(address, 1);
  ASSERT_GT(pid, 0);
  const absl::Time before = absl::Now();
  ASSERT_EQ(kill(pid, SIGSTOP), 0);
  EXPECT_EQ(train.Wait(), (ExitStatus{1, 0})) << train.error();
  EXPECT_LT(absl::Now() - before, absl::Seconds(5));
  EXPECT_THAT(train.error(), HasSubstr("rank 1 of 3"));
  EXPECT_THAT(train.error(), HasSubstr("has been silent"));
  EXPECT_TRUE(Leftovers().empty());
}

TEST_F(FailureTest, FailingWorkerIsTheCauseAndTheOthersAreNot) {
  Running train =
      Start("ringmaster", {"train", "--backend", "cpu", "--workers", "3", "--max-failures", "0"},
            {{"RINGMASTER_FAULT", "fail-step:5"}});
  EXPECT_EQ(train.Wait(), (ExitStatus{1, 0}));
  EXPECT_THAT(train.error(), HasSubstr("injected fault in step 5"));
  EXPECT_THAT(train.error(), HasSubstr("rank 2 of 3"));
  EXPECT_THAT(train.error(), Not(HasSubstr("rank 0 of 3")));
}

TEST_F(FailureTest, DroppedSampleFailsTheAudit) {
  const Captured run = Run("ringmaster", {"train", "--backend", "cpu", "--epochs", "1"},
                           {{"RINGMASTER_FAULT", "drop-sample"}});
  EXPECT_EQ(run.status, (ExitStatus{1, 0})) << run.out << run.error;
  EXPECT_THAT(run.out + run.error, HasSubstr("step 3"));
  EXPECT_THAT(run.out + run.error, HasSubstr("128"));
  EXPECT_THAT(run.out + run.error, HasSubstr("127"));
}

TEST_F(FailureTest, InterruptEndsEverything) {
  auto [train, address] = StartSlowTraining(2);
  train.child().Signal(SIGINT);
  EXPECT_EQ(train.Wait(absl::Seconds(15)), (ExitStatus{130, 0})) << train.error();
  EXPECT_TRUE(Leftovers().empty());
}

TEST_F(FailureTest, TerminationEndsEverything) {
  auto [train, address] = StartSlowTraining(2);
  train.child().Signal(SIGTERM);
  EXPECT_EQ(train.Wait(absl::Seconds(15)), (ExitStatus{143, 0})) << train.error();
  EXPECT_TRUE(Leftovers().empty());
}

TEST_F(FailureTest, NothingOutlivesAKilledTrain) {
  auto [train, address] = StartSlowTraining(2);
  EXPECT_GE(ProcessesIn(directory()).size(), 5u);  // train, coordinator, agent, two ranks
  kill(train.child().pid(), SIGKILL);
  train.Wait();
  EXPECT_TRUE(Leftovers().empty());
}

TEST_F(FailureTest, InterruptBeforeAnyWorkerCame) {
  Running coordinator =
      Start("ringmaster-coordinator", {"--nodes", "2", "--listen", "127.0.0.1:0"});
  ASSERT_TRUE(coordinator.Until(
      [&coordinator] { return coordinator.error().find("127.0.0.1:") != std::string::npos; }));
  coordinator.child().Signal(SIGINT);
  EXPECT_EQ(coordinator.Wait(absl::Seconds(15)), (ExitStatus{130, 0})) << coordinator.error();
}

TEST_F(FailureTest, WorkerWithoutACoordinatorSaysWhyAndGivesUp) {
  const absl::Time before = absl::Now();
  const Captured run = Run("ringmaster-worker", {"--coordinator", "127.0.0.1:1", "--join-timeout",
                                                 "2", "--backend", "cpu"});
  EXPECT_EQ(run.status, (ExitStatus{1, 0}));
  EXPECT_GE(absl::Now() - before, absl::Seconds(2));
  EXPECT_LT(absl::Now() - before, absl::Seconds(8));
  EXPECT_THAT(run.error, HasSubstr("cannot reach the coordinator at 127.0.0.1:1 yet"));
  EXPECT_THAT(run.error, HasSubstr("could not reach the coordinator at 127.0.0.1:1 within 2s"));
  EXPECT_THAT(run.error, HasSubstr("refused"));
}

TEST_F(FailureTest, InterruptedWhileItTriesToJoin) {
  Running worker = Start("ringmaster-worker", {"--coordinator", "127.0.0.1:1", "--backend", "cpu"});
  ASSERT_TRUE(
      worker.Until([&worker] { return worker.error().find("cannot reach") != std::string::npos; }));
  worker.child().Signal(SIGINT);
  EXPECT_EQ(worker.Wait(absl::Seconds(15)), (ExitStatus{130, 0})) << worker.error();
}

TEST_F(FailureTest, CudaWhereThereIsNoneIsAConfigurationError) {
  const Captured probe = Run("ringmaster-worker", {"probe"});
  ASSERT_TRUE(probe.status.ok()) << probe.error;
  if (!nlohmann::json::parse(probe.out)["gpus"].empty()) GTEST_SKIP() << "there is a GPU here";
  for (const char* program : {"ringmaster", "ringmaster-worker"}) {
    const std::vector<std::string> args =
        program == std::string("ringmaster")
            ? std::vector<std::string>{"train", "--backend", "cuda"}
            : std::vector<std::string>{"--coordinator", "127.0.0.1:1", "--backend", "cuda"};
    const Captured run = Run(program, args);
    EXPECT_EQ(run.status, (ExitStatus{2, 0})) << run.error;
    EXPECT_THAT(run.error, HasSubstr("none can be used"));
    EXPECT_THAT(run.error, HasSubstr("--backend cpu"));
  }
  EXPECT_FALSE(Exists("runs"));
}

TEST_F(FailureTest, WrongUsage) {
  struct Case {
    std::vector<std::string> args;
    std::string message;
  };
  const Case cases[] = {
      {{"trian"}, "unknown command 'trian'; did you mean train?"},
      {{}, "usage: ringmaster COMMAND"},
      {{"train", "--epoch", "3"}, "unknown option --epoch; did you mean --epochs?"},
      {{"train", "--epochs", "0"}, "--epochs: wants a whole number from 1"},
      {{"train", "--workers", "2:"}, "how many at most"},
      {{"train", "--layers", "783,10"}, "784"},
      {{"train", "--layers", "784,9", "--dry-run"}, "10 classes"},
      {{"status"}, "--coordinator HOST:PORT is needed"},
      {{"evaluate", "nowhere.safetensors"}, "nowhere.safetensors"},
      {{"evaluate"}, "which weights?"},
  };
  for (const Case& c : cases) {
    const Captured run = Run("ringmaster", c.args);
    EXPECT_EQ(run.status, (ExitStatus{2, 0})) << run.error;
    EXPECT_THAT(run.error, HasSubstr(c.message));
  }
  EXPECT_EQ(Run("ringmaster-worker", {}).status, (ExitStatus{2, 0}));
  EXPECT_EQ(Run("ringmaster-worker", {"proces"}).status, (ExitStatus{2, 0}));
  EXPECT_FALSE(Exists("runs"));
}

TEST_F(FailureTest, RunDirectoryInUseIsRefused) {
  WriteFile("mine/precious.txt", "keep");
  const Captured run = Run("ringmaster", {"train", "--backend", "cpu", "--run-dir", "mine"});
  EXPECT_EQ(run.status, (ExitStatus{2, 0})) << run.error;
  EXPECT_THAT(run.error, HasSubstr("mine"));
  EXPECT_EQ(ReadFile("mine/precious.txt"), "keep");
}

// Each damage to a copy of the data set: exit code 2, the file named, nothing written.
class BadDataTest : public FailureTest {
 protected:
  void ExpectRefused(const std::vector<std::string>& parts) {
    for (const bool dry_run : {false, true}) {
      std::vector<std::string> args = {"train", "--backend", "cpu", "--data-dir", "data"};
      if (dry_run) args.push_back("--dry-run");
      const Captured run = Run("ringmaster", args);
      EXPECT_EQ(run.status, (ExitStatus{2, 0})) << run.out << run.error;
      for (const std::string& part : parts) EXPECT_THAT(run.error, HasSubstr(part));
    }
    EXPECT_FALSE(Exists("runs"));
  }

  void Remove(const std::string& name) { std::filesystem::remove(Path("data/" + name)); }
};

TEST_F(BadDataTest, NoSuchDirectory) { ExpectRefused({"data"}); }

TEST_F(BadDataTest, MissingFile) {
  LinkMnist("data");
  Remove("train-labels-idx1-ubyte.gz");
  Remove("SHA256SUMS");
  ExpectRefused({"train-labels-idx1-ubyte"});
}

TEST_F(BadDataTest, DigestThatDoesNotMatch) {
  LinkMnist("data");
  std::string bytes = ReadFile("data/t10k-labels-idx1-ubyte.gz");
  bytes[100] ^= 1;
  WriteFile("data/t10k-labels-idx1-ubyte.gz", bytes);
  ExpectRefused({"t10k-labels-idx1-ubyte.gz", "SHA256SUMS"});
}

TEST_F(BadDataTest, TruncatedWithoutSums) {
  WriteSmallDataset("data", 100, 20, 4, 2);
  std::string bytes = ReadFile("data/train-images-idx3-ubyte");
  bytes.pop_back();
  WriteFile("data/train-images-idx3-ubyte", bytes);
  ExpectRefused({"train-images-idx3-ubyte"});
}

TEST_F(BadDataTest, TrailingBytes) {
  WriteSmallDataset("data", 100, 20, 4, 2);
  WriteFile("data/t10k-labels-idx1-ubyte", ReadFile("data/t10k-labels-idx1-ubyte") + "x");
  ExpectRefused({"t10k-labels-idx1-ubyte"});
}

TEST_F(BadDataTest, WrongMagic) {
  WriteSmallDataset("data", 100, 20, 4, 2);
  std::string bytes = ReadFile("data/train-images-idx3-ubyte");
  bytes[2] = 0x0D;  // floats
  WriteFile("data/train-images-idx3-ubyte", bytes);
  ExpectRefused({"train-images-idx3-ubyte"});
}

TEST_F(BadDataTest, CountsThatDiffer) {
  WriteSmallDataset("data", 100, 20, 4, 2);
  WriteSmallDataset("other", 99, 20, 4, 2);
  WriteFile("data/train-labels-idx1-ubyte", ReadFile("other/train-labels-idx1-ubyte"));
  ExpectRefused({"100", "99"});
}

TEST_F(BadDataTest, NoSamples) {
  WriteSmallDataset("data", 0, 20, 4, 2);
  ExpectRefused({"train-"});
}

}  // namespace
}  // namespace ringmaster
