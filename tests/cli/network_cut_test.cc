// Cuts a real process off from a real connection. Needs root and nft; skips without.

#include "cli/network_cut.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/cli/fake_process.h"

namespace ringmaster {
namespace {

// Longer than any answer takes, and short enough to wait for silence: the one place in which
// nothing can be waited for.
constexpr int kSilenceMs = 300;
constexpr int kPatienceMs = 10000;

// Echoes lines on one connection; at SIGUSR1 it makes another and says something there.
constexpr char kEcho[] = R"(
trap 'exec 4<>/dev/tcp/127.0.0.1/$0; echo ! >&4' USR1
exec 3<>/dev/tcp/127.0.0.1/$0
while read -r line <&3; do echo "$line" >&3; done
)";

class NetworkCutTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ChildOptions probe;
    probe.argv = {"/usr/bin/env", "unshare", "--mount", "nft", "list", "tables"};
    probe.pipe_stdout = true;
    probe.pipe_stderr = true;
    const auto probed = RunAndCapture(probe, absl::Seconds(20));
    if (!probed.ok() || !probed->status.ok()) {
      GTEST_SKIP() << "no root, or no nft: " << (probed.ok() ? probed->error : "not started");
    }
    listener_ = UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    ASSERT_EQ(listen(listener_.get(), 8), 0);
    socklen_t size = sizeof address;
    getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size);
    port_ = absl::StrCat(ntohs(address.sin_port));
    process_.emplace(StartEcho());
    connection_ = Accept(kPatienceMs);
    ASSERT_TRUE(connection_.valid());
    ASSERT_TRUE(Echoes(connection_, kPatienceMs));
  }

  Child StartEcho() {
    return StartAs(directory_, "ringmaster-worker", "/bin/bash", {"-c", kEcho, port_});
  }

  static bool Readable(int fd, int timeout_ms) {
    pollfd polled{fd, POLLIN, 0};
    return poll(&polled, 1, timeout_ms) == 1;
  }

  UniqueFd Accept(int timeout_ms) {
    if (!Readable(listener_.get(), timeout_ms)) return UniqueFd();
    return UniqueFd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  }

  static void Send(const UniqueFd& connection, const std::string& text) {
    EXPECT_EQ(write(connection.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }

  // Whether what is sent comes back.
  static bool Echoes(const UniqueFd& connection, int timeout_ms) {
    Send(connection, "?\n");
    return ReadLine(connection, timeout_ms);
  }
  static bool ReadLine(const UniqueFd& connection, int timeout_ms) {
    char line[2];
    return Readable(connection.get(), timeout_ms) &&
           recv(connection.get(), line, sizeof line, MSG_WAITALL) == sizeof line;
  }

  const TemporaryDirectory directory_;
  UniqueFd listener_;
  std::string port_;
  std::optional<Child> process_;
  UniqueFd connection_;
};

TEST_F(NetworkCutTest, DropsPacketsOfConnectionsThatAreThereUntilItsEnd) {
  {
    const auto cut = NetworkCut::Start(process_->pid());
    ASSERT_TRUE(cut.ok()) << cut.status();
    EXPECT_FALSE(Echoes(connection_, kSilenceMs));
  }
  EXPECT_TRUE(ReadLine(connection_, kPatienceMs));  // TCP sends it once more
  EXPECT_TRUE(Echoes(connection_, kPatienceMs));
}

TEST_F(NetworkCutTest, DropsPacketsOfNewConnectionsUntilItsEnd) {
  {
    const auto cut = NetworkCut::Start(process_->pid());
    ASSERT_TRUE(cut.ok()) << cut.status();
    process_->Signal(SIGUSR1);
    EXPECT_FALSE(Accept(kSilenceMs).valid());
  }
  const UniqueFd next = Accept(kPatienceMs);
  ASSERT_TRUE(next.valid());
  EXPECT_TRUE(ReadLine(next, kPatienceMs));
}

TEST_F(NetworkCutTest, OthersAreNotTouched) {
  const Child other = StartEcho();
  const UniqueFd connection = Accept(kPatienceMs);
  ASSERT_TRUE(connection.valid());
  const auto cut = NetworkCut::Start(process_->pid());
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_TRUE(Echoes(connection, kPatienceMs));
}

TEST_F(NetworkCutTest, SaysWhyItCannot) {
  Child ended = StartAs(directory_, "true", "/bin/true", {});
  ended.Wait();
  const auto cut = NetworkCut::Start(ended.pid());
  EXPECT_EQ(cut.status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace ringmaster
