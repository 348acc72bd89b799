#include <signal.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
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

  static absl::StatusOr<Child> StartScript(const std::string& script) {
    ChildOptions child;
    child.argv = {"/bin/sh", "-c", script};
    child.pipe_stdout = true;
    child.pipe_stderr = true;
    return Child::Start(child);
  }

  SupervisorResult Run(const std::vector<std::string>& scripts, Supervisor::Options options) {
    if (!options.on_failure) {
      options.on_failure = [this](const ChildFailure& failure) { failures_.push_back(failure); };
    }
    Supervisor supervisor(&*signals_, std::move(options));
    for (const std::string& script : scripts) {
      auto started = StartScript(script);
      EXPECT_TRUE(started.ok()) << started.status();
      supervisor.Add(*std::move(started));
    }
    return supervisor.Run();
  }

  // The lives of child 0 after the first, one after the other.
  Supervisor::Options RestartingOptions(std::vector<std::string> scripts) {
    Supervisor::Options options = Options();
    options.restart = [this, scripts](size_t index) -> absl::StatusOr<Child> {
      restarted_.push_back(index);
      if (restarted_.size() > scripts.size()) return absl::ResourceExhaustedError("no processes");
      return StartScript(scripts[restarted_.size() - 1]);
    };
    return options;
  }

  std::optional<StopSignals> signals_;
  std::vector<std::string> lines_;
  std::function<void(const std::string&)> on_line_;
  std::vector<ChildFailure> failures_;
  std::vector<size_t> restarted_;
};

constexpr char kForEver[] = "echo ready; while :; do sleep 0.01; done";

TEST_F(SupervisorTest, AllWell) {
  const SupervisorResult result = Run({"echo a", "echo b >&2", "printf 'no newline'"}, Options());
  EXPECT_TRUE(result.ok);
  EXPECT_EQ(result.stop_signal, 0);
  EXPECT_FALSE(result.cause.has_value());
  EXPECT_THAT(lines_,
              ::testing::UnorderedElementsAre("child 0: a", "child 1: b", "child 2: no newline"));
}

TEST_F(SupervisorTest, FailureIsTheCauseWhenNothingIsStartedAnew) {
  Supervisor::Options options = Options();
  options.own_end = absl::Milliseconds(50);
  const SupervisorResult result = Run({kForEver, "echo broken; kill -KILL $$"}, options);
  EXPECT_FALSE(result.ok);
  ASSERT_TRUE(result.cause.has_value());
  EXPECT_EQ(result.cause->index, 1u);
  EXPECT_EQ(result.cause->status, (ExitStatus{0, SIGKILL}));
  EXPECT_GT(result.cause->pid, 0);
  EXPECT_EQ(result.cause->then, ChildFailure::Then::kNodeEnds);
  EXPECT_THAT(result.cause->last_lines, ElementsAre("broken"));
  EXPECT_EQ(failures_.size(), 1u);  // the one that was pressed is none
}

TEST_F(SupervisorTest, EndOfTheRunHasNoCause) {
  const SupervisorResult result = Run({"exit 3", "exit 3"}, Options());
  EXPECT_FALSE(result.ok);
  EXPECT_FALSE(result.cause.has_value());
  EXPECT_TRUE(failures_.empty());
}

TEST_F(SupervisorTest, KilledChildIsStartedAnewAtOnce) {
  // The first life says who it is and is killed from outside.
  Supervisor::Options options = RestartingOptions({"echo again"});
  on_line_ = [](const std::string& line) {
    int pid = 0;
    if (absl::SimpleAtoi(line, &pid)) kill(pid, SIGKILL);
  };
  const SupervisorResult result = Run({"echo $$; while :; do sleep 0.01; done"}, options);
  EXPECT_TRUE(result.ok);
  EXPECT_FALSE(result.cause.has_value());
  EXPECT_THAT(restarted_, ElementsAre(0u));
  ASSERT_EQ(failures_.size(), 1u);
  EXPECT_EQ(failures_[0].status, (ExitStatus{0, SIGKILL}));
  EXPECT_EQ(failures_[0].then, ChildFailure::Then::kRestart);
  EXPECT_EQ(failures_[0].wait, absl::ZeroDuration());
  EXPECT_EQ(failures_[0].futile_lives, 1);
  EXPECT_EQ(lines_.back(), "child 0: again");
}

TEST_F(SupervisorTest, EachLifeHasItsOwnLinesAndWaitsLongerInACrashLoop) {
  const SupervisorResult result =
      Run({"printf first; exit 1"}, RestartingOptions({"printf second; exit 1", "exit 1", "true"}));
  EXPECT_TRUE(result.ok);
  EXPECT_THAT(lines_, ElementsAre("child 0: first", "child 0: second"));
  ASSERT_EQ(failures_.size(), 3u);
  EXPECT_THAT(failures_[1].last_lines, ElementsAre("second"));
  EXPECT_EQ(failures_[1].wait, absl::Milliseconds(100));
  EXPECT_EQ(failures_[2].wait, absl::Milliseconds(200));
  EXPECT_EQ(failures_[2].futile_lives, 3);
}

TEST_F(SupervisorTest, WhoTrainedDoesNotWait) {
  Supervisor::Options options = RestartingOptions({"exit 1", "exit 1", "true"});
  options.trained = [](size_t) { return true; };
  EXPECT_TRUE(Run({"exit 1"}, options).ok);
  ASSERT_EQ(failures_.size(), 3u);
  for (const ChildFailure& failure : failures_) EXPECT_EQ(failure.wait, absl::ZeroDuration());
}

TEST_F(SupervisorTest, ChildThatCannotBeStartedAnewIsTriedAgainUntilToldToStop) {
  Supervisor::Options options = RestartingOptions({});
  options.on_failure = [this](const ChildFailure& failure) {
    failures_.push_back(failure);
    if (failures_.size() == 3) kill(getpid(), SIGTERM);
  };
  const SupervisorResult result = Run({"exit 4"}, options);
  EXPECT_EQ(result.stop_signal, SIGTERM);  // while nobody runs: it waits only for its next try
  ASSERT_EQ(failures_.size(), 3u);
  EXPECT_EQ(failures_[0].status, (ExitStatus{4, 0}));
  EXPECT_EQ(failures_[0].futile_lives, 0);
  EXPECT_THAT(failures_[1].last_lines, ElementsAre("no processes"));
  EXPECT_EQ(failures_[2].wait, absl::Milliseconds(100));
}

// What each exit code of the first life leads to: whether there is a second one, and the end.
TEST_F(SupervisorTest, ExitCodes) {
  struct Case {
    int code;
    bool restarts;
    bool ok;
    bool cause;
  };
  for (const Case& c :
       {Case{0, false, true, false}, Case{1, true, true, false}, Case{2, false, false, true},
        Case{3, false, false, false}, Case{4, true, true, false}, Case{5, false, false, true},
        Case{143, true, true, false}}) {
    SCOPED_TRACE(absl::StrCat("exit code ", c.code));
    restarted_.clear();
    const SupervisorResult result =
        Run({absl::StrCat("exit ", c.code)}, RestartingOptions({"exit 0"}));
    EXPECT_EQ(restarted_.size(), c.restarts ? 1u : 0u);
    EXPECT_EQ(result.ok, c.ok);
    EXPECT_EQ(result.cause.has_value(), c.cause);
    EXPECT_EQ(result.cause ? result.cause->status.code : c.code, c.code);
  }
}

TEST_F(SupervisorTest, NothingIsStartedAnewOnceTheRunIsOver) {
  // Child 0 fails twice and then waits, longer than this test lasts; then child 1 ends the run.
  const std::string waits = absl::StrCat(testing::TempDir(), "/child-0-waits-", getpid());
  for (const int code : {0, 3}) {
    restarted_.clear();
    failures_.clear();
    Supervisor::Options options = RestartingOptions({"exit 1", "exit 1"});
    options.waits.first_wait = options.waits.longest_wait = absl::Hours(1);
    options.on_failure = [&](const ChildFailure& failure) {
      failures_.push_back(failure);
      if (failures_.size() == 2) std::ofstream(waits).put('x');
    };
    const std::string end_the_run = absl::StrCat(
        "while [ ! -e ", waits, " ]; do sleep 0.01; done; ", "rm ", waits, "; exit ", code);
    const SupervisorResult result = Run({"exit 1", end_the_run}, options);
    EXPECT_EQ(result.ok, code == 0);
    EXPECT_EQ(restarted_.size(), 1u) << "exit code " << code;
  }
}

TEST_F(SupervisorTest, FailureAfterTheEndOfTheRunIsToldAndChangesNothing) {
  const SupervisorResult result =
      Run({"exit 0", "sleep 0.1; exit 1"}, RestartingOptions({"exit 0"}));
  EXPECT_TRUE(result.ok);
  EXPECT_FALSE(result.cause.has_value());
  EXPECT_TRUE(restarted_.empty());
  ASSERT_EQ(failures_.size(), 1u);
  EXPECT_EQ(failures_[0].then, ChildFailure::Then::kRunIsOver);
}

TEST_F(SupervisorTest, ChildThatDoesNotObeyIsKilledAndIsNotTheCause) {
  for (const int code : {0, 3}) {
    Supervisor::Options options = Options();
    options.own_end = options.good_end = absl::Milliseconds(300);
    options.failure_grace = absl::Milliseconds(50);
    const absl::Time before = absl::Now();
    const SupervisorResult result =
        Run({absl::StrCat("trap '' TERM; ", kForEver), absl::StrCat("exit ", code)}, options);
    EXPECT_EQ(result.ok, code == 0);
    EXPECT_FALSE(result.cause.has_value());
    EXPECT_TRUE(failures_.empty());
    EXPECT_LT(absl::Now() - before, absl::Seconds(10));
  }
}

TEST_F(SupervisorTest, StopSignalIsPassedOnAsSigterm) {
  on_line_ = [](const std::string& line) {
    if (line == "ready") kill(getpid(), SIGINT);
  };
  const SupervisorResult result =
      Run({absl::StrCat("trap 'echo told; exit 143' TERM; ", kForEver)}, RestartingOptions({}));
  EXPECT_EQ(result.stop_signal, SIGINT);
  EXPECT_TRUE(restarted_.empty());
  EXPECT_TRUE(failures_.empty());
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
  EXPECT_TRUE(result.ok);
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

TEST(ProcessNotes, AreForgottenForTheNextProcess) {
  auto notes = ProcessNotes::Create(2);
  ASSERT_TRUE(notes.ok());
  for (const int local_rank : {0, 1}) (*notes)[local_rank].step = 5;
  notes->Forget(1);
  EXPECT_EQ((*notes)[0].step, 5);
  EXPECT_EQ((*notes)[1].step, -1);
}

TEST(ProcessNotes, TooSmallIsRefused) {
  auto agent = ProcessNotes::Create(1);
  ASSERT_TRUE(agent.ok());
  EXPECT_EQ(ProcessNotes::Open(agent->fd(), 2).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(ProcessNotes::Open(-1, 1).ok());
}

}  // namespace
}  // namespace ringmaster
