// `ringmaster train` between a coordinator and an agent that die as a test wants it: scripts,
// beside a copy of the program. What is asserted: who is started again, with what, and how train
// ends.

#include <signal.h>

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "tests/integration/run_fixture.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kForEver[] = "while :; do sleep 0.01; done";
constexpr char kUntilDone[] = "while [ ! -e done ]; do sleep 0.01; done; exit 0";

class TrainPartsTest : public RunTest {
 protected:
  void SetUp() override {
    RunTest::SetUp();
    WriteSmallDataset("small", 20, 5, 4, 2);
    std::filesystem::create_directories(Path("bin"));
    std::filesystem::copy(std::string(RINGMASTER_PROGRAMS) + "/ringmaster", Path("bin/ringmaster"));
    SetAgent(kUntilDone);
  }

  // Each life is one line of NAME.lives: its arguments. $life counts from 1.
  void WriteProgram(const std::string& name, const std::string& script) {
    WriteFile("bin/" + name, absl::StrCat("#!/bin/bash\necho \"$@\" >> ", name, ".lives\n",
                                          "life=$(wc -l < ", name, ".lives)\n", script, "\n"));
    std::filesystem::permissions(Path("bin/" + name), std::filesystem::perms::owner_all);
  }
  // `ready` in it gets ready.
  void SetCoordinator(const std::string& script) {
    WriteProgram("ringmaster-coordinator",
                 absl::StrCat("ready() { printf '127.0.0.1:4711\\trun-1\\n' >&10; }\n", script));
  }
  void SetAgent(const std::string& script) { WriteProgram("ringmaster-worker", script); }

  Running StartTrain(std::vector<std::string> args = {}) {
    ChildOptions options;
    options.argv = {Path("bin/ringmaster"), "train", "--backend", "cpu", "--data-dir", "small"};
    options.argv.insert(options.argv.end(), args.begin(), args.end());
    options.pipe_stdout = true;
    options.pipe_stderr = true;
    options.working_directory = directory();
    auto child = Child::Start(options);
    EXPECT_TRUE(child.ok()) << child.status();
    return Running(*std::move(child), directory());
  }
  // To the end.
  Captured Train(const std::vector<std::string>& args = {}) {
    Running train = StartTrain(args);
    const ExitStatus status = train.Wait();
    return {status, train.out(), train.error()};
  }

  // The arguments of each life so far.
  std::vector<std::string> Lives(const std::string& name) const {
    return absl::StrSplit(ReadFile(name + ".lives"), '\n', absl::SkipEmpty());
  }
  std::vector<std::string> Coordinators() const { return Lives("ringmaster-coordinator"); }
  std::vector<std::string> Agents() const { return Lives("ringmaster-worker"); }
};

TEST_F(TrainPartsTest, KilledCoordinatorIsStartedAgainWhereItWas) {
  SetCoordinator("ready; [ $life = 3 ] && touch done && exit 0; kill -KILL $$");
  const Captured train = Train({"--resume", "never", "--epochs", "4"});
  EXPECT_EQ(train.status, (ExitStatus{0, 0})) << train.error;
  EXPECT_THAT(train.error,
              HasSubstr("the coordinator was killed by SIGKILL (signal 9); it is started again"));
  ASSERT_EQ(Coordinators().size(), 3u);
  EXPECT_THAT(Coordinators()[0], HasSubstr("--listen=127.0.0.1:0"));
  EXPECT_THAT(Coordinators()[0], HasSubstr("--resume=never"));
  for (const int again : {1, 2}) {
    EXPECT_THAT(Coordinators()[again], HasSubstr("--listen=127.0.0.1:4711"));
    EXPECT_THAT(Coordinators()[again], HasSubstr("--run-dir=run-1"));
    EXPECT_THAT(Coordinators()[again], HasSubstr("--epochs=4"));
    EXPECT_THAT(Coordinators()[again], Not(HasSubstr("never")));
  }
  ASSERT_EQ(Agents().size(), 1u);
  EXPECT_THAT(Agents()[0], HasSubstr("--coordinator=127.0.0.1:4711"));
}

TEST_F(TrainPartsTest, CoordinatorThatNeverGetsReadyIsGivenUp) {
  SetCoordinator("kill -SEGV $$");
  const Captured train = Train();
  EXPECT_EQ(train.status, (ExitStatus{1, 0})) << train.error;
  EXPECT_EQ(Coordinators().size(), 5u);
  EXPECT_THAT(train.error,
              HasSubstr("SIGSEGV (signal 11), and that is its death number 5 in a row"));
  EXPECT_TRUE(Agents().empty());
}

TEST_F(TrainPartsTest, CoordinatorThatGetsReadyEachTimeIsNotGivenUp) {
  SetCoordinator("ready; [ $life = 8 ] && touch done && exit 0; exit 77");
  const Captured train = Train();
  EXPECT_EQ(train.status, (ExitStatus{0, 0})) << train.error;
  EXPECT_EQ(Coordinators().size(), 8u);
}

TEST_F(TrainPartsTest, CoordinatorThatEndsForAReasonIsNotStartedAgain) {
  for (const int code : {0, 1, 2, 143}) {
    SCOPED_TRACE(absl::StrCat("exit code ", code));
    std::filesystem::remove(Path("ringmaster-coordinator.lives"));
    std::filesystem::remove(Path("done"));
    SetCoordinator(absl::StrCat("ready; touch done; exit ", code));
    const Captured train = Train();
    EXPECT_EQ(train.status, (ExitStatus{code, 0})) << train.error;
    EXPECT_EQ(Coordinators().size(), 1u);
    const bool stopped = train.error.find("ringmaster train --run-dir run-1") != std::string::npos;
    EXPECT_EQ(stopped, code == 143) << train.error;
  }
}

// It prints the result and ends, before it is ready or after.
TEST_F(TrainPartsTest, FinishedRunNeedsNoWorkers) {
  SetAgent(kForEver);
  for (const char* coordinator : {"exit 0", "ready; exit 0"}) {
    SetCoordinator(coordinator);
    const Captured train = Train({"--run-dir", "run-1"});
    EXPECT_EQ(train.status, (ExitStatus{0, 0})) << train.error;
  }
  EXPECT_LE(Agents().size(), 1u);
}

TEST_F(TrainPartsTest, KilledAgentIsStartedAgain) {
  SetCoordinator(absl::StrCat("ready; ", kUntilDone));
  SetAgent("[ $life = 3 ] && touch done && exit 0; kill -KILL $$");
  const Captured train = Train({"--workers", "3"});
  EXPECT_EQ(train.status, (ExitStatus{0, 0})) << train.error;
  ASSERT_EQ(Agents().size(), 3u);
  EXPECT_EQ(Agents()[0], Agents()[2]);
  EXPECT_THAT(train.error, HasSubstr("the agent was killed by SIGKILL (signal 9); it is started"));
}

TEST_F(TrainPartsTest, AgentThatAlwaysDiesIsGivenUpAndTheCoordinatorTold) {
  SetCoordinator(absl::StrCat("trap 'exit 143' TERM; ready; ", kForEver));
  SetAgent("kill -ABRT $$");
  const Captured train = Train();
  EXPECT_EQ(train.status, (ExitStatus{1, 0})) << train.error;
  EXPECT_EQ(Agents().size(), 5u);
  EXPECT_THAT(train.error,
              HasSubstr("SIGABRT (signal 6), and that is its death number 5 in a row"));
}

TEST_F(TrainPartsTest, AgentThatCannotRunEndsTheRunAtOnce) {
  SetCoordinator(absl::StrCat("trap 'exit 143' TERM; ready; ", kForEver));
  SetAgent("exit 2");
  EXPECT_EQ(Train().status, (ExitStatus{2, 0}));
  EXPECT_EQ(Agents().size(), 1u);
}

TEST_F(TrainPartsTest, RangeOfWorkers) {
  SetCoordinator("ready; touch done; exit 0");
  EXPECT_TRUE(Train({"--workers", "1:3"}).status.ok());
  ASSERT_EQ(Coordinators().size(), 1u);
  EXPECT_THAT(Coordinators()[0], HasSubstr("--workers=1:3"));
  ASSERT_EQ(Agents().size(), 1u);
  EXPECT_THAT(Agents()[0], HasSubstr("--processes=3"));
}

// The coordinator gets the signal itself; the agent ends because of what the coordinator tells it.
TEST_F(TrainPartsTest, InterruptSaysHowToGoOn) {
  for (const int signal : {SIGINT, SIGTERM}) {
    std::filesystem::remove(Path("done"));
    SetCoordinator(absl::StrCat("trap 'echo told; touch done; exit ", 128 + signal, "' ",
                                signal == SIGINT ? "INT" : "TERM", "; ready; echo up; ", kForEver));
    SetAgent(absl::StrCat("echo agent up; trap 'echo pressed' TERM; ", kUntilDone));
    Running train = StartTrain();
    ASSERT_TRUE(train.Until([&] { return train.out().find("agent up") != std::string::npos; }));
    train.child().Signal(signal);
    EXPECT_EQ(train.Wait(), (ExitStatus{128 + signal, 0})) << train.error();
    EXPECT_THAT(train.out(), HasSubstr("told"));
    EXPECT_THAT(train.out(), Not(HasSubstr("pressed")));
    EXPECT_THAT(train.error(), HasSubstr("stopped; go on with: ringmaster train --run-dir run-1"));
  }
  EXPECT_EQ(Coordinators().size(), 2u);  // one a run: stopping is no death
}

TEST_F(TrainPartsTest, CoordinatorThatDiesWhileStoppingIsNotStartedAgain) {
  SetCoordinator(absl::StrCat("trap 'touch done; kill -KILL $$' INT; ready; ", kForEver));
  SetAgent(absl::StrCat("echo agent up; ", kUntilDone));
  Running train = StartTrain();
  ASSERT_TRUE(train.Until([&] { return train.out().find("agent up") != std::string::npos; }));
  train.child().Signal(SIGINT);
  EXPECT_EQ(train.Wait(), (ExitStatus{130, 0})) << train.error();
  EXPECT_EQ(Coordinators().size(), 1u);
}

TEST_F(TrainPartsTest, SecondInterruptKillsAtOnce) {
  SetCoordinator(absl::StrCat("trap 'echo told' INT; trap '' TERM; ready; ", kForEver));
  SetAgent(absl::StrCat("trap '' TERM; echo agent up; ", kForEver));
  Running train = StartTrain();
  ASSERT_TRUE(train.Until([&] { return train.out().find("agent up") != std::string::npos; }));
  train.child().Signal(SIGINT);
  ASSERT_TRUE(train.Until([&] { return train.out().find("told") != std::string::npos; }));
  const absl::Time before = absl::Now();
  train.child().Signal(SIGINT);
  EXPECT_EQ(train.Wait(), (ExitStatus{130, 0})) << train.error();
  EXPECT_LT(absl::Now() - before, absl::Seconds(3));
}

}  // namespace
}  // namespace ringmaster
