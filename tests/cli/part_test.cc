#include "cli/part.h"

#include <signal.h>
#include <unistd.h>

#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1000);

TEST(Died, BySignalOrWithACodeThatOurProgramsDoNotEndWith) {
  EXPECT_TRUE(Died({0, SIGKILL}));
  EXPECT_TRUE(Died({0, SIGTERM}));
  for (const int code : {0, 1, 2, 128 + SIGINT, 128 + SIGTERM}) {
    EXPECT_FALSE(Died({code, 0})) << code;
  }
  for (const int code : {3, 66, 127, 128, 255}) EXPECT_TRUE(Died({code, 0})) << code;
}

TEST(DeathCount, FiveInARowAreTooMany) {
  DeathCount deaths;
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(deaths.MayStartAgain(kStart, kStart + absl::Seconds(9)));
  EXPECT_FALSE(deaths.MayStartAgain(kStart, kStart + absl::Seconds(9)));
  EXPECT_EQ(deaths.deaths(), 5);
}

TEST(DeathCount, LongLifeStartsOver) {
  DeathCount deaths;
  for (int i = 0; i < 100; ++i) {
    const absl::Duration life = absl::Seconds(i % 4 == 3 ? 10 : 1);
    EXPECT_TRUE(deaths.MayStartAgain(kStart, kStart + life)) << i;
  }
}

TEST(DeathCount, GettingReadyStartsOver) {
  DeathCount deaths;
  for (int i = 0; i < 100; ++i) {
    if (i % 4 == 0) deaths.Ready();
    EXPECT_TRUE(deaths.MayStartAgain(kStart, kStart)) << i;
  }
}

class PartTest : public ::testing::Test {
 protected:
  void StartScript(const std::string& script) {
    ChildOptions options;
    options.argv = {"/bin/sh", "-c", script};
    auto pipe = MakePipe();
    ASSERT_TRUE(pipe.ok());
    options.descriptors = {{pipe->write.get(), STDOUT_FILENO}};
    ASSERT_TRUE(part_.Start(options).ok());
    said_ = std::move(pipe->read);
  }

  // Presses it until it has ended.
  ExitStatus UntilEnd() {
    for (;;) {
      if (const auto end = part_.TakeEnd()) return *end;
      part_.Press();
      WaitReadable({part_.pidfd()}, part_.next_press() - absl::Now());
    }
  }

  Part part_{"part"};
  UniqueFd said_;
};

constexpr char kForEver[] = "while :; do sleep 0.01; done";

TEST_F(PartTest, NothingIsDoneBeforeTheFirstStart) {
  EXPECT_TRUE(part_.done());
  EXPECT_FALSE(part_.ever_started());
  EXPECT_EQ(part_.pidfd(), -1);
  part_.Tell(SIGTERM, absl::ZeroDuration());
  EXPECT_FALSE(part_.told());
  EXPECT_TRUE(part_.last_end().ok());
}

TEST_F(PartTest, EndIsTakenOnceALife) {
  for (const int code : {3, 4}) {
    StartScript(absl::StrCat("exit ", code));
    EXPECT_FALSE(part_.done());
    EXPECT_EQ(UntilEnd(), (ExitStatus{code, 0}));
    EXPECT_EQ(part_.TakeEnd(), std::nullopt);
    EXPECT_TRUE(part_.done());
    EXPECT_EQ(part_.last_end(), (ExitStatus{code, 0}));
  }
}

TEST_F(PartTest, IsToldWhenItsTimeIsUp) {
  StartScript(kForEver);
  part_.EndBy(absl::Now(), absl::Hours(1));
  part_.EndBy(absl::Now() + absl::Hours(1), absl::Hours(1));  // too late to change it
  EXPECT_EQ(UntilEnd(), (ExitStatus{0, SIGTERM}));
  EXPECT_TRUE(part_.told());
}

TEST_F(PartTest, IsKilledWhenItDoesNotObey) {
  StartScript(absl::StrCat("trap '' TERM; echo x; ", kForEver));
  char byte = 0;
  ASSERT_EQ(read(said_.get(), &byte, 1), 1);
  part_.EndBy(absl::Now(), absl::Milliseconds(50));
  EXPECT_EQ(UntilEnd(), (ExitStatus{0, SIGKILL}));
}

}  // namespace
}  // namespace ringmaster
