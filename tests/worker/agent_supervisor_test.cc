#include <signal.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/process_notes.h"
#include "worker/supervisor.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::IsSupersetOf;

// Children are shell scripts; their relayed lines are collected.
class SupervisorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto signals = StopSignals::Create();
    ASSERT_TRUE(signals.ok()) << signals.status();
    signals_.emplace(*std::move(signals));
  }

  Supervisor::Options Options() {
    Supervisor::Options options;
    options.label = [](size_t index) { return absl::StrCat("child ", index); };
    options.relay = [this](const std::string& label, const std::string& line) {
      lines_.push_back(label + ": " + line);
      if (on_line_) on_line_(line);
    };
    return options;
  }

  SupervisorResult Run(const std::vector<std::string>& scripts, Supervisor::Options options) {
    Supervisor supervisor(&*signals_, std::move(options));
    for (const std::string& script : scripts) {
      ChildOptions child;
      child.argv = {"/bin/sh", "-c", script};
      child.pipe_stdout = true;
      child.pipe_stderr = true;
      auto started = Child::Start(child);
      EXPECT_TRUE(started.ok()) << started.status();
      supervisor.Add(*std::move(started));
    }
    return supervisor.Run();
  }

  std::optional<StopSignals> signals_;
  std::vector<std::string> lines_;
  std::function<void(const std::string&)> on_line_;
};

constexpr char kForEver[] = "echo ready; while :; do sleep 0.01; done";

TEST_F(SupervisorTest, AllWell) {
  const SupervisorResult result = Run({"echo a", "echo b >&2", "printf 'no newline'"}, Options());
  EXPECT_TRUE(result.all_ok);
  EXPECT_EQ(result.stop_signal, 0);
  EXPECT_FALSE(result.cause.has_value());
  EXPECT_THAT(lines_,
              ::testing::UnorderedElementsAre("child 0: a", "child 1: b", "child 2: no newline"));
}

TEST_F(SupervisorTest, FirstFailureIsTheCauseAndConsequencesAreNot) {
  // 0 ends because of another, 1 is that other, 2 follows.
  const SupervisorResult result =
      Run({"exit 3", "sleep 0.05; echo broken; exit 1", "sleep 0.2; exit 3"}, Options());
  EXPECT_FALSE(result.all_ok);
  ASSERT_TRUE(result.cause.has_value());
  EXPECT_EQ(result.cause->index, 1u);
  EXPECT_EQ(result.cause->status, (ExitStatus{1, 0}));
  EXPECT_THAT(result.cause->last_lines, ElementsAre("broken"));
}

TEST_F(SupervisorTest, OnlyConsequencesHaveNoCause) {
  const SupervisorResult result = Run({"exit 3", "exit 3"}, Options());
  EXPECT_FALSE(result.all_ok);
  EXPECT_FALSE(result.cause.has_value());
}

TEST_F(SupervisorTest, KilledChildIsTheCauseAndTheRestIsEnded) {
  Supervisor::Options options = Options();
  options.own_end = absl::Milliseconds(50);
  const SupervisorResult result = Run({kForEver, "kill -KILL $$"}, options);
  ASSERT_TRUE(result.cause.has_value());
  EXPECT_EQ(result.cause->index, 1u);
  EXPECT_EQ(result.cause->status, (ExitStatus{0, SIGKILL}));
  EXPECT_GT(result.cause->pid, 0);
}

TEST_F(SupervisorTest, ChildThatDoesNotObeyIsKilledAndIsNotTheCause) {
  Supervisor::Options options = Options();
  options.own_end = absl::Milliseconds(300);
  options.failure_grace = absl::Milliseconds(50);
  const absl::Time before = absl::Now();
  const SupervisorResult result =
      Run({absl::StrCat("trap '' TERM; ", kForEver), "exit 3"}, options);
  EXPECT_FALSE(result.all_ok);
  EXPECT_FALSE(result.cause.has_value());
  EXPECT_LT(absl::Now() - before, absl::Seconds(10));
}

TEST_F(SupervisorTest, StopSignalIsPassedOnAsSigterm) {
  on_line_ = [](const std::string& line) {
    if (line == "ready") kill(getpid(), SIGINT);
  };
  const SupervisorResult result =
      Run({absl::StrCat("trap 'echo told; exit 143' TERM; ", kForEver)}, Options());
  EXPECT_EQ(result.stop_signal, SIGINT);
  EXPECT_FALSE(result.cause.has_value());
  // The shell may add that its `sleep` was terminated.
  EXPECT_THAT(lines_, IsSupersetOf({"child 0: ready", "child 0: told"}));
}

TEST_F(SupervisorTest, SecondStopSignalKills) {
  int ready = 0;
  on_line_ = [&ready](const std::string& line) {
    if (line == "ready" || line == "told") kill(getpid(), ++ready == 1 ? SIGTERM : SIGINT);
  };
  Supervisor::Options options = Options();
  options.grace = absl::Seconds(1000);
  const SupervisorResult result = Run({absl::StrCat("trap 'echo told' TERM; ", kForEver)}, options);
  EXPECT_EQ(result.stop_signal, SIGTERM);
}

TEST_F(SupervisorTest, KeepsTheLastLinesOnly) {
  const SupervisorResult result =
      Run({"for i in $(seq 1 100); do echo line $i; done; exit 1"}, Options());
  ASSERT_TRUE(result.cause.has_value());
  EXPECT_EQ(result.cause->last_lines.size(), Supervisor::kLastLines);
  EXPECT_EQ(result.cause->last_lines.back(), "line 100");
  EXPECT_EQ(lines_.size(), 100u);
}

TEST_F(SupervisorTest, VeryLongLinesAreCut) {
  const SupervisorResult result =
      Run({"head -c 200000 /dev/zero | tr '\\0' x; echo; echo end"}, Options());
  EXPECT_TRUE(result.all_ok);
  EXPECT_THAT(lines_, IsSupersetOf({"child 0: end"}));
  EXPECT_EQ(lines_.size(), 5u);  // 65536 x 3, the rest, "end"
}

TEST(ProcessNotes, AreSharedWithWhoeverOpensTheDescriptor) {
  auto agent = ProcessNotes::Create(3);
  ASSERT_TRUE(agent.ok()) << agent.status();
  auto child = ProcessNotes::Open(agent->fd(), 3);
  ASSERT_TRUE(child.ok()) << child.status();
  EXPECT_EQ((*agent)[2].rank, -1);
  (*child)[2].rank = 7;
  (*child)[2].step = 312;
  EXPECT_EQ((*agent)[2].rank, 7);
  EXPECT_EQ((*agent)[2].step, 312);
  EXPECT_EQ((*agent)[1].rank, -1);
}

TEST(ProcessNotes, TooSmallIsRefused) {
  auto agent = ProcessNotes::Create(1);
  ASSERT_TRUE(agent.ok());
  EXPECT_EQ(ProcessNotes::Open(agent->fd(), 2).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(ProcessNotes::Open(-1, 1).ok());
}

}  // namespace
}  // namespace ringmaster
