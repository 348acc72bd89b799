#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/local_address.h"
#include "worker/retry.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

// Time that passes only by sleeping.
struct FakeTime {
  absl::Time now = absl::UnixEpoch();
  std::vector<absl::Duration> pauses;

  RetryClock clock() {
    return {[this] { return now; },
            [this](absl::Duration pause) {
              pauses.push_back(pause);
              now += pause;
            }};
  }
};

TEST(Backoff, DoublesUpToTwoSecondsWithJitter) {
  Backoff backoff(1);
  absl::Duration nominal = absl::Milliseconds(100);
  for (int i = 0; i < 20; ++i) {
    const absl::Duration pause = backoff.Next();
    EXPECT_LE(pause, nominal);
    EXPECT_GE(pause, nominal / 2);
    nominal = std::min(nominal * 2, absl::Seconds(2));
  }
}

TEST(Backoff, BeginsAnewAfterAReset) {
  Backoff backoff(1);
  for (int i = 0; i < 10; ++i) backoff.Next();
  backoff.Reset();
  EXPECT_LE(backoff.Next(), absl::Milliseconds(100));
}

TEST(Backoff, DiffersFromProcessToProcess) { EXPECT_NE(Backoff(1).Next(), Backoff(2).Next()); }

TEST(RetryUntil, TriesUntilItWorks) {
  FakeTime time;
  int attempts = 0;
  const absl::Status status =
      RetryUntil(absl::Seconds(600), "reach it", 1, time.clock(), [&attempts] {
        return ++attempts < 5 ? absl::UnavailableError("refused") : absl::OkStatus();
      });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(attempts, 5);
  EXPECT_EQ(time.pauses.size(), 4u);
}

TEST(RetryUntil, GivesUpWithGoalAndLastReason) {
  FakeTime time;
  const absl::Status status =
      RetryUntil(absl::Seconds(2), "reach the coordinator at h:1", 1, time.clock(),
                 [] { return absl::UnavailableError("connection refused"); });
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("could not reach the coordinator at h:1 within 2s. Last reason: "
                        "connection refused"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("--join-timeout"));
  EXPECT_EQ(time.now - absl::UnixEpoch(), absl::Seconds(2));
}

TEST(RetryUntil, OtherErrorsEndItAtOnce) {
  FakeTime time;
  const absl::Status status = RetryUntil(absl::Seconds(2), "reach it", 1, time.clock(), [] {
    return absl::FailedPreconditionError("another version");
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(time.pauses.empty());
}

TEST(LocalAddress, LoopbackForLoopback) {
  const auto address = LocalAddressTowards("127.0.0.1:80");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(*address, "127.0.0.1");
}

TEST(LocalAddress, UnknownHostIsUnavailable) {
  const auto address = LocalAddressTowards("no-such-host.invalid:80");
  EXPECT_EQ(address.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(address.status().message()), HasSubstr("no-such-host.invalid"));
}

}  // namespace
}  // namespace ringmaster
