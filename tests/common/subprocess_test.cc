#include "common/subprocess.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

ChildOptions Shell(const std::string& script) {
  ChildOptions options;
  options.argv = {"/bin/sh", "-c", script};
  options.pipe_stdout = true;
  options.pipe_stderr = true;
  return options;
}

Captured RunToEnd(const ChildOptions& options) {
  auto captured = RunAndCapture(options, absl::Seconds(30));
  EXPECT_TRUE(captured.ok()) << captured.status();
  return captured.ok() ? *std::move(captured) : Captured{};
}

std::string ReadLine(int fd) {
  std::string line;
  char c = 0;
  for (;;) {
    WaitReadable({fd}, absl::Seconds(30));
    if (read(fd, &c, 1) != 1 || c == '\n') return line;
    line += c;
  }
}

// Reads until the end of the stream.
std::string ReadAll(int fd) {
  std::string text;
  char buffer[256];
  for (;;) {
    WaitReadable({fd}, absl::Seconds(30));
    const ssize_t count = read(fd, buffer, sizeof buffer);
    if (count <= 0) return text;
    text.append(buffer, static_cast<size_t>(count));
  }
}

TEST(Child, OutputAndExitCode) {
  const Captured captured = RunToEnd(Shell("echo out; echo err >&2; exit 7"));
  EXPECT_EQ(captured.out, "out\n");
  EXPECT_EQ(captured.error, "err\n");
  EXPECT_EQ(captured.status, (ExitStatus{7, 0}));
  EXPECT_EQ(captured.status.Describe(), "exited with code 7");
}

TEST(Child, DeathBySignal) {
  const Captured captured = RunToEnd(Shell("kill -KILL $$"));
  EXPECT_EQ(captured.status, (ExitStatus{0, SIGKILL}));
  EXPECT_EQ(captured.status.Describe(), "was killed by SIGKILL (signal 9)");
}

TEST(Child, MuchOutputDoesNotBlock) {
  EXPECT_EQ(RunToEnd(Shell("head -c 1000000 /dev/zero")).out.size(), 1000000u);
}

TEST(Child, MissingProgramIsNotFound) {
  ChildOptions options;
  options.argv = {"/no/such/program"};
  const auto child = Child::Start(options);
  EXPECT_EQ(child.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(child.status().message()), HasSubstr("/no/such/program"));
}

TEST(Child, EnvironmentIsChanged) {
  setenv("RM_TEST_OLD", "old", 1);
  ChildOptions options = Shell("echo ${RM_TEST_OLD-gone} $RM_TEST_NEW");
  options.unset_environment = {"RM_TEST_OLD"};
  options.set_environment = {{"RM_TEST_NEW", "new"}};
  EXPECT_EQ(RunToEnd(options).out, "gone new\n");
  unsetenv("RM_TEST_OLD");
}

TEST(Child, InheritsTheDescriptorsAskedForAndNoOther) {
  auto pipe = MakePipe();
  ASSERT_TRUE(pipe.ok());
  ASSERT_EQ(write(pipe->write.get(), "hello\n", 6), 6);
  struct stat info;
  ASSERT_EQ(fstat(pipe->read.get(), &info), 0);
  ChildOptions options = Shell("read line <&9; echo $line; ls -l /proc/$$/fd | grep -c 'pipe:\\[" +
                               std::to_string(info.st_ino) + "\\]'");
  options.descriptors = {{pipe->read.get(), 9}};
  EXPECT_EQ(RunToEnd(options).out, "hello\n1\n");
}

TEST(Child, StandardInputIsEmpty) { EXPECT_EQ(RunToEnd(Shell("cat; echo done")).out, "done\n"); }

TEST(Child, StartsWithDefaultSignals) {
  signal(SIGPIPE, SIG_IGN);
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1);
  sigprocmask(SIG_BLOCK, &blocked, nullptr);
  const std::string out = RunToEnd(Shell("grep -E 'Sig(Blk|Ign)' /proc/self/status | cut -f2")).out;
  ASSERT_EQ(out.size(), 34u) << out;
  const uint64_t ours = uint64_t{1} << (SIGUSR1 - 1) | uint64_t{1} << (SIGPIPE - 1);
  EXPECT_EQ(std::stoull(out.substr(0, 16), nullptr, 16) & ours, 0u) << out;
  EXPECT_EQ(std::stoull(out.substr(17, 16), nullptr, 16) & ours, 0u) << out;
  sigprocmask(SIG_UNBLOCK, &blocked, nullptr);
  signal(SIGPIPE, SIG_DFL);
}

TEST(Child, StopAsksFirst) {
  auto child = Child::Start(Shell("trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done"));
  ASSERT_TRUE(child.ok()) << child.status();
  ASSERT_EQ(ReadLine(child->stdout_fd()), "ready");
  EXPECT_EQ(child->Stop(absl::Seconds(20)), (ExitStatus{5, 0}));
}

TEST(Child, StopKillsWhatDoesNotObey) {
  auto child = Child::Start(Shell("trap '' TERM; echo ready; while :; do sleep 0.01; done"));
  ASSERT_TRUE(child.ok()) << child.status();
  ASSERT_EQ(ReadLine(child->stdout_fd()), "ready");
  EXPECT_EQ(child->Stop(absl::Milliseconds(50)), (ExitStatus{0, SIGKILL}));
}

TEST(Child, DestructorLeavesNobodyBehind) {
  int out = -1;
  {
    auto child = Child::Start(Shell("sleep 1000 & echo ready; wait"));
    ASSERT_TRUE(child.ok()) << child.status();
    ASSERT_EQ(ReadLine(child->stdout_fd()), "ready");
    out = dup(child->stdout_fd());
  }
  // The pipe closes when the last process that holds it is gone: the grandchild too.
  EXPECT_EQ(ReadAll(out), "");
  close(out);
}

TEST(Child, WaitForGivesUp) {
  auto child = Child::Start(Shell("sleep 1000"));
  ASSERT_TRUE(child.ok()) << child.status();
  EXPECT_EQ(child->WaitFor(absl::Milliseconds(20)), std::nullopt);
}

TEST(RunAndCapture, KillsAtTheDeadline) {
  const auto captured = RunAndCapture(Shell("echo said; sleep 1000"), absl::Milliseconds(300));
  EXPECT_EQ(captured.status().code(), absl::StatusCode::kDeadlineExceeded);
}

// A child may close its output and end at any moment, also between two looks at it.
TEST(RunAndCapture, NoEndIsMissed) {
  ChildOptions options = Shell("exec >&- 2>&-");
  for (int i = 0; i < 500; ++i) {
    const absl::Time before = absl::Now();
    const auto captured = RunAndCapture(options, absl::Seconds(30));
    ASSERT_TRUE(captured.ok()) << captured.status();
    ASSERT_LT(absl::Now() - before, absl::Seconds(20)) << "missed in run " << i;
  }
}

// The child's own first line: run as `subprocess_test --die-with-parent`.
TEST(DieWithParent, ChildDiesWhenItsParentIsKilled) {
  ChildOptions options;
  options.argv = {"/proc/self/exe", "--middle"};
  options.pipe_stdout = true;
  auto middle = Child::Start(options);
  ASSERT_TRUE(middle.ok()) << middle.status();
  const int out = dup(middle->stdout_fd());
  int grandchild = 0;
  ASSERT_TRUE(absl::SimpleAtoi(ReadLine(out), &grandchild));
  ASSERT_EQ(kill(grandchild, 0), 0);
  kill(middle->pid(), SIGKILL);
  middle->Wait();
  EXPECT_EQ(ReadAll(out), "");  // the grandchild held the pipe
  close(out);
}

TEST(DieWithParent, DoesNothingWhenNobodyOfOursStartedIt) {
  unsetenv("RINGMASTER_PARENT_PID");
  DieWithParent(SIGKILL);
  SUCCEED();
}

TEST(StopSignals, TellsWhichCame) {
  auto signals = StopSignals::Create();
  ASSERT_TRUE(signals.ok()) << signals.status();
  EXPECT_EQ(signals->Next(), 0);
  kill(getpid(), SIGTERM);
  WaitReadable({signals->fd()}, absl::Seconds(10));
  EXPECT_EQ(signals->Next(), SIGTERM);
  EXPECT_EQ(signals->Next(), 0);
}

TEST(SignalName, Names) {
  EXPECT_EQ(SignalName(SIGSEGV), "SIGSEGV");
  EXPECT_EQ(SignalName(200), "signal 200");
  EXPECT_EQ(ExitCodeForSignal(SIGINT), 130);
  EXPECT_EQ(ExitCodeForSignal(SIGTERM), 143);
}

TEST(ProgramBeside, MissingOneIsNotFound) {
  EXPECT_EQ(ProgramBeside("no-such-program").status().code(), absl::StatusCode::kNotFound);
}

// The process in the middle of DieWithParent's test: starts a child of its own, and waits.
int RunMiddle() {
  ChildOptions options;
  options.argv = {"/proc/self/exe", "--leaf"};
  auto leaf = Child::Start(options);
  if (!leaf.ok()) return 1;
  return leaf->Wait().code;
}

int RunLeaf() {
  DieWithParent(SIGKILL);
  printf("%d\n", getpid());
  fflush(stdout);
  for (;;) pause();
}

}  // namespace
}  // namespace ringmaster

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "--middle") return ringmaster::RunMiddle();
  if (argc > 1 && std::string(argv[1]) == "--leaf") return ringmaster::RunLeaf();
  ::testing::InitGoogleMock(&argc, argv);
  return RUN_ALL_TESTS();
}
