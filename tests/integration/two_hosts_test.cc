// Two "hosts": network namespaces with addresses of their own, joined by a veth pair. Needs the
// privilege to make them; skips without.

#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/integration/run_fixture.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

class TwoHostsTest : public RunTest {
 protected:
  void SetUp() override {
    RunTest::SetUp();
    const std::string tag = absl::StrCat("rm", getpid() % 100000);
    host_[0] = tag + "a";
    host_[1] = tag + "b";
    const std::string commands[] = {
        absl::StrCat("ip netns add ", host_[0]),
        absl::StrCat("ip netns add ", host_[1]),
        absl::StrCat("ip link add ", host_[0], " netns ", host_[0], " type veth peer name ",
                     host_[1], " netns ", host_[1]),
        absl::StrCat("ip -n ", host_[0], " addr add 10.83.0.1/24 dev ", host_[0]),
        absl::StrCat("ip -n ", host_[1], " addr add 10.83.0.2/24 dev ", host_[1]),
        absl::StrCat("ip -n ", host_[0], " link set ", host_[0], " up"),
        absl::StrCat("ip -n ", host_[1], " link set ", host_[1], " up"),
        absl::StrCat("ip -n ", host_[0], " link set lo up"),
        absl::StrCat("ip -n ", host_[1], " link set lo up"),
    };
    for (const std::string& command : commands) {
      const Captured made = Shell(command);
      if (!made.status.ok()) {
        GTEST_SKIP() << "no network namespaces here: '" << command << "' said: " << made.error;
      }
    }
  }

  void TearDown() override {
    for (const std::string& host : host_) Shell("ip netns del " + host);
    RunTest::TearDown();
  }

  static Captured Shell(const std::string& command) {
    ChildOptions options;
    options.argv = {"/bin/sh", "-c", command};
    options.pipe_stdout = true;
    options.pipe_stderr = true;
    auto captured = RunAndCapture(options, absl::Seconds(20));
    return captured.ok() ? *std::move(captured)
                         : Captured{{1, 0}, "", std::string(captured.status().message())};
  }

  // A worker on one of the hosts.
  Running StartWorker(int host, const std::string& processes) {
    return StartOn(
        host, "ringmaster-worker",
        {"--coordinator", "10.83.0.1:29400", "--backend", "cpu", "--processes", processes});
  }

  // Runs inside one of the hosts.
  Running StartOn(int host, const std::string& program, const std::vector<std::string>& args) {
    return Start(program, args, {}, {"/usr/bin/env", "ip", "netns", "exec", host_[host]});
  }

  std::string host_[2];
};

TEST_F(TwoHostsTest, TrainTogether) {
  Running coordinator = StartOn(0, "ringmaster-coordinator",
                                {"--nodes", "2", "--epochs", "1", "--report", "report.json"});
  Running near = StartWorker(0, "1");
  Running far = StartWorker(1, "2");
  EXPECT_TRUE(near.Wait().ok()) << near.error();
  EXPECT_TRUE(far.Wait().ok()) << far.error();
  EXPECT_TRUE(coordinator.Wait().ok()) << coordinator.out() << coordinator.error();
  const nlohmann::json report = ReadJson("report.json");
  EXPECT_EQ(report.value("world_size", 0), 3);
  EXPECT_EQ(report.value("samples_committed", 0), 60000);
  EXPECT_GT(report.value("test_accuracy", 0.0), 0.90);
}

TEST_F(TwoHostsTest, CutCableIsWaitedOut) {
  Running coordinator =
      StartOn(0, "ringmaster-coordinator",
              {"--nodes", "2", "--epochs", "6", "--patience", "1", "--report", "report.json"});
  Running near = StartWorker(0, "1");
  Running far = StartWorker(1, "1");
  ASSERT_TRUE(coordinator.Until([&coordinator] {
    return coordinator.out().find("Epoch 1/6") != std::string::npos;
  })) << coordinator.out()
      << coordinator.error();
  Shell(absl::StrCat("ip -n ", host_[1], " link set ", host_[1], " down"));
  ASSERT_TRUE(coordinator.Until([&coordinator] {
    return coordinator.error().find("generation 1 is over") != std::string::npos;
  })) << coordinator.error();
  Shell(absl::StrCat("ip -n ", host_[1], " link set ", host_[1], " up"));
  EXPECT_TRUE(coordinator.Wait().ok()) << coordinator.out() << coordinator.error();
  EXPECT_TRUE(near.Wait().ok()) << near.error();
  EXPECT_TRUE(far.Wait().ok()) << far.error();
  const nlohmann::json report = ReadJson("report.json");
  EXPECT_GE(report.value("failures_survived", 0), 1);
  EXPECT_EQ(report.value("samples_committed", 0), 6 * 60000);
}

}  // namespace
}  // namespace ringmaster
