#include "coordinator/step_clock.h"

#include "gtest/gtest.h"

namespace ringmaster {
namespace {

// To within a quarter of an octave above.
void ExpectAbout(absl::Duration got, absl::Duration wanted) {
  EXPECT_GE(got, wanted);
  EXPECT_LE(got, wanted * 1.19);
}

TEST(StepClockTest, NothingYet) { EXPECT_EQ(StepClock().P99(), absl::ZeroDuration()); }

TEST(StepClockTest, OneStep) {
  StepClock clock;
  clock.Add(absl::Milliseconds(3));
  ExpectAbout(clock.P99(), absl::Milliseconds(3));
}

TEST(StepClockTest, OneInAHundredMayTakeLonger) {
  StepClock clock;
  for (int i = 0; i < 99; ++i) clock.Add(absl::Milliseconds(1));
  clock.Add(absl::Seconds(1));
  ExpectAbout(clock.P99(), absl::Milliseconds(1));
  clock.Add(absl::Seconds(1));
  ExpectAbout(clock.P99(), absl::Seconds(1));
}

TEST(StepClockTest, WhatIsOutOfBounds) {
  StepClock clock;
  clock.Add(absl::ZeroDuration());
  EXPECT_LE(clock.P99(), absl::Microseconds(2));
  clock.Add(absl::Hours(24 * 365));
  EXPECT_GE(clock.P99(), absl::Hours(24));
  EXPECT_LT(clock.P99(), absl::InfiniteDuration());
}

}  // namespace
}  // namespace ringmaster
