#include "cli/host_process.h"

#include <signal.h>
#include <unistd.h>

#include "tests/cli/fake_process.h"

namespace ringmaster {
namespace {

class HostProcessTest : public ::testing::Test {
 protected:
  const TemporaryDirectory directory_;
};

TEST_F(HostProcessTest, FindsAndSignals) {
  Child worker = StartIdleAs(directory_, "ringmaster-worker");
  const auto found = HostProcess::Find(worker.pid(), "ringmaster-worker");
  ASSERT_TRUE(found);
  EXPECT_EQ(found->pid(), worker.pid());
  EXPECT_EQ(found->parent(), getpid());
  EXPECT_TRUE(found->Signal(SIGKILL));
  EXPECT_EQ(worker.Wait(), (ExitStatus{0, SIGKILL}));
  EXPECT_FALSE(found->Signal(SIGKILL));
}

TEST_F(HostProcessTest, LeavesOthersAlone) {
  Child other = StartIdleAs(directory_, "somebody-else");
  EXPECT_FALSE(HostProcess::Find(other.pid(), "ringmaster-worker"));
  EXPECT_FALSE(HostProcess::Find(1, "ringmaster-worker"));
  EXPECT_FALSE(HostProcess::Find(0, ""));
  EXPECT_FALSE(HostProcess::Find(-1, ""));
}

TEST_F(HostProcessTest, DoesNotTakeAnEndedProcessForALivingOne) {
  Child worker = StartIdleAs(directory_, "ringmaster-worker");
  worker.Signal(SIGKILL);
  WaitReadable({worker.pidfd()}, absl::Seconds(60));
  EXPECT_FALSE(HostProcess::Find(worker.pid(), "ringmaster-worker"));  // not waited for yet
  worker.Wait();
  EXPECT_FALSE(HostProcess::Find(worker.pid(), "ringmaster-worker"));
}

TEST_F(HostProcessTest, FindsTheChildOfAParent) {
  Child worker = StartIdleAs(directory_, "ringmaster-worker");
  Child coordinator = StartIdleAs(directory_, "ringmaster-coordinator");
  const auto found = HostProcess::FindChild(getpid(), "ringmaster-coordinator");
  ASSERT_TRUE(found);
  EXPECT_EQ(found->pid(), coordinator.pid());
  EXPECT_FALSE(HostProcess::FindChild(worker.pid(), "ringmaster-coordinator"));
}

}  // namespace
}  // namespace ringmaster
