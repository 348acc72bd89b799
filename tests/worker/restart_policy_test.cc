#include "worker/restart_policy.h"

#include <signal.h>

#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

constexpr absl::Duration kShort = absl::Seconds(1);
constexpr absl::Duration kLong = absl::Seconds(11);
const absl::Time kStart = absl::FromUnixSeconds(1000);

class RestartPolicyTest : public ::testing::Test {
 protected:
  absl::Duration Wait(absl::Duration life, bool trained = false,
                      ProcessEnd how = ProcessEnd::kFailed) {
    return policy_.LifeEnded(how, kStart, kStart + life, trained);
  }

  RestartPolicy policy_;
};

TEST(ProcessEnd, ExitCodes) {
  EXPECT_EQ(MeaningOf({0, 0}), ProcessEnd::kFinished);
  EXPECT_EQ(MeaningOf({1, 0}), ProcessEnd::kFailed);
  EXPECT_EQ(MeaningOf({2, 0}), ProcessEnd::kMisconfigured);
  EXPECT_EQ(MeaningOf({3, 0}), ProcessEnd::kRunIsOver);
  EXPECT_EQ(MeaningOf({4, 0}), ProcessEnd::kRespawn);
  EXPECT_EQ(MeaningOf({5, 0}), ProcessEnd::kGaveUp);
  for (const int code : {6, 127, 128 + SIGTERM, 255}) {
    EXPECT_EQ(MeaningOf({code, 0}), ProcessEnd::kFailed) << code;
  }
  EXPECT_EQ(MeaningOf({0, SIGKILL}), ProcessEnd::kFailed);
}

TEST_F(RestartPolicyTest, CrashLoopWaitsTwiceAsLongEachTime) {
  EXPECT_EQ(Wait(kShort), absl::ZeroDuration());
  for (const int wait_ms : {100, 200, 400, 800, 1600, 3200, 5000, 5000}) {
    EXPECT_EQ(Wait(kShort), absl::Milliseconds(wait_ms));
  }
  EXPECT_EQ(policy_.futile_lives(), 9);
}

TEST_F(RestartPolicyTest, NeverOverflows) {
  for (int life = 0; life < 10000; ++life) EXPECT_LE(Wait(kShort), absl::Seconds(5));
}

TEST_F(RestartPolicyTest, LongLifeStartsFromTheBeginning) {
  for (int life = 0; life < 4; ++life) Wait(kShort);
  EXPECT_EQ(Wait(kLong), absl::ZeroDuration());
  EXPECT_EQ(policy_.futile_lives(), 0);
  EXPECT_EQ(Wait(kShort), absl::ZeroDuration());
  EXPECT_EQ(Wait(kShort), absl::Milliseconds(100));
}

TEST_F(RestartPolicyTest, LifeOfExactlyTheLimitIsLong) {
  for (int life = 0; life < 4; ++life) Wait(kShort);
  EXPECT_EQ(Wait(absl::Seconds(10) - absl::Nanoseconds(1)), absl::Milliseconds(800));
  EXPECT_EQ(Wait(absl::Seconds(10)), absl::ZeroDuration());
}

TEST_F(RestartPolicyTest, KilledAsOftenAsOneLikesWhileItTrains) {
  for (int life = 0; life < 200; ++life) EXPECT_EQ(Wait(kShort, true), absl::ZeroDuration());
}

TEST_F(RestartPolicyTest, RespawnNeverWaitsAndCountsAsNothing) {
  for (int life = 0; life < 3; ++life) Wait(kShort);
  EXPECT_EQ(Wait(kShort, false, ProcessEnd::kRespawn), absl::ZeroDuration());
  EXPECT_EQ(Wait(kShort), absl::Milliseconds(400));
}

}  // namespace
}  // namespace ringmaster
