#include "worker/watchdog.h"

#include <atomic>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "worker/interrupt.h"

namespace ringmaster {
namespace {

TEST(Watchdog, ActsAtTheFirstDeadlineItWasGiven) {
  std::atomic<int> calls{0};
  const absl::Time start = absl::Now();
  Watchdog watchdog([&calls] {
    ++calls;
    calls.notify_all();
  });
  watchdog.Arm(absl::Milliseconds(20));
  watchdog.Arm(absl::Hours(1));
  calls.wait(0);
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(20));
}

TEST(Watchdog, DoesNothingWhenCalledOff) {
  std::atomic<int> calls{0};
  {
    Watchdog watchdog([&calls] { ++calls; });
    watchdog.Arm(absl::Hours(1));
    watchdog.Disarm();
  }
  EXPECT_EQ(calls, 0);
}

TEST(Interrupt, CallsEachActionOnce) {
  Interrupt interrupt;
  int before = 0;
  int after = 0;
  int gone = 0;
  {
    const Interrupt::Scope scope(&interrupt, [&gone] { ++gone; });
  }
  const Interrupt::Scope first(&interrupt, [&before] { ++before; });
  interrupt.Trigger();
  interrupt.Trigger();
  const Interrupt::Scope second(&interrupt, [&after] { ++after; });
  EXPECT_TRUE(interrupt.triggered());
  EXPECT_EQ(before, 1);
  EXPECT_EQ(after, 1);
  EXPECT_EQ(gone, 0);
}

}  // namespace
}  // namespace ringmaster
