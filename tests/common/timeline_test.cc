#include "common/timeline.h"

#include "gtest/gtest.h"

namespace ringmaster {
namespace {

TEST(TimelineTest, StepsThenTheEvaluation) {
  const Timeline timeline(3, 2);
  EXPECT_EQ(timeline.records_per_epoch(), 4u);
  EXPECT_EQ(timeline.end(), 8u);
  EXPECT_EQ(timeline.At(0), (TimelineEntry{0, 0, false}));
  EXPECT_EQ(timeline.At(2), (TimelineEntry{0, 2, false}));
  EXPECT_EQ(timeline.At(3), (TimelineEntry{0, 0, true}));
  EXPECT_EQ(timeline.At(4), (TimelineEntry{1, 0, false}));
  EXPECT_EQ(timeline.At(7), (TimelineEntry{1, 0, true}));
}

TEST(TimelineTest, IndexOfIsTheInverse) {
  for (const uint32_t steps : {1u, 2u, 469u}) {
    const Timeline timeline(steps, 3);
    for (uint64_t i = 0; i < timeline.end(); ++i) EXPECT_EQ(timeline.IndexOf(timeline.At(i)), i);
  }
}

// Each training step is an update, an evaluation is none.
TEST(TimelineTest, UpdatesBefore) {
  const Timeline timeline(3, 2);
  uint64_t updates = 0;
  for (uint64_t i = 0; i < timeline.end(); ++i) {
    EXPECT_EQ(timeline.UpdatesBefore(i), updates) << i;
    if (!timeline.At(i).evaluation) ++updates;
  }
  EXPECT_EQ(timeline.UpdatesBefore(timeline.end()), 6u);
}

// Counts beyond 32 bits.
TEST(TimelineTest, LongRuns) {
  const Timeline timeline(4'000'000'000u, 4'000'000'000u);
  const uint64_t last = timeline.end() - 1;
  EXPECT_EQ(timeline.At(last), (TimelineEntry{3'999'999'999u, 0, true}));
  EXPECT_EQ(timeline.IndexOf(timeline.At(last)), last);
}

TEST(TimelineTest, OfAPlan) {
  const Timeline timeline(SamplingPlan{7, 60000, 128}, 6);
  EXPECT_EQ(timeline.steps_per_epoch(), 469u);
  EXPECT_EQ(timeline.end(), 2820u);
}

}  // namespace
}  // namespace ringmaster
