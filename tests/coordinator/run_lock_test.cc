#include "coordinator/run_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/temporary_directory.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

TEST(RunLockTest, OneOwner) {
  const TemporaryDirectory directory;
  auto first = RunLock::Take(directory.path());
  ASSERT_TRUE(first.ok()) << first.status();
  std::optional<RunLock> held(*std::move(first));
  const absl::Status status = RunLock::Take(directory.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  char host[256] = "";
  gethostname(host, sizeof host - 1);
  EXPECT_EQ(std::string(status.message()),
            absl::StrCat("run directory ", directory.path(), " is in use by pid ", getpid(),
                         " on host ", host));
  held.reset();
  EXPECT_TRUE(RunLock::Take(directory.path()).ok());
}

TEST(RunLockTest, DirectoriesAreIndependent) {
  const TemporaryDirectory one;
  const TemporaryDirectory two;
  const auto first = RunLock::Take(one.path());
  EXPECT_TRUE(first.ok());
  EXPECT_TRUE(RunLock::Take(two.path()).ok());
}

TEST(RunLockTest, AMissingDirectoryIsNotFound) {
  const absl::Status status = RunLock::Take("/no/such/run").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/no/such/run/lock"));
}

// The owner is killed with SIGKILL and cleans up nothing.
TEST(RunLockTest, TheKernelFreesItWhenTheOwnerDies) {
  const TemporaryDirectory directory;
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t owner = fork();
  if (owner == 0) {
    const auto lock = RunLock::Take(directory.path());
    const char said = lock.ok() ? 'y' : 'n';
    if (write(ready[1], &said, 1) != 1) _exit(1);
    for (;;) pause();
  }
  char said = 0;
  ASSERT_EQ(read(ready[0], &said, 1), 1);
  EXPECT_EQ(said, 'y');
  const absl::Status status = RunLock::Take(directory.path()).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("pid ", owner)));
  kill(owner, SIGKILL);
  ASSERT_EQ(waitpid(owner, nullptr, 0), owner);
  EXPECT_TRUE(RunLock::Take(directory.path()).ok());
  close(ready[0]);
  close(ready[1]);
}

}  // namespace
}  // namespace ringmaster
