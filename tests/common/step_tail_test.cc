#include "common/step_tail.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace ringmaster {
namespace {

constexpr uint64_t kValues[] = {
    0, 1, 4095, 4096, uint64_t{1} << 36, 0x0123456789abcdef, std::numeric_limits<uint64_t>::max()};

StepRecord BusyRecord() {
  StepRecord record;
  record.loss_sum_quanta = tail::QuantizeLoss(295.5f);
  record.correct = 111;
  record.samples = 128;
  record.digest = 0xfebcebea3e71885a;
  record.non_finite = 2;
  for (int i = 0; i < tail::kFlagCount; ++i) record.flags[i] = static_cast<uint32_t>(i + 1);
  return record;
}

// What an all-reduce over `ranks` copies of `tail` leaves; fp32 all the way.
std::vector<float> SumOfCopies(const std::vector<float>& tail, int ranks) {
  std::vector<float> sum(tail.size());
  for (int rank = 0; rank < ranks; ++rank) {
    for (size_t i = 0; i < tail.size(); ++i) sum[i] += tail[i];
  }
  return sum;
}

TEST(StepTailTest, IntegersSurvive) {
  for (const uint64_t value : kValues) {
    float limbs[tail::kLimbs];
    tail::PutInteger(value, limbs);
    for (const float limb : limbs) {
      EXPECT_GE(limb, 0.0f);
      EXPECT_LT(limb, 4096.0f);
    }
    EXPECT_EQ(tail::GetInteger(limbs), value);
  }
}

TEST(StepTailTest, SumsAreExactForAllWorldSizes) {
  for (const uint64_t value : kValues) {
    std::vector<float> limbs(tail::kLimbs);
    tail::PutInteger(value, limbs.data());
    for (const int ranks : {1, 2, 3, 1000, tail::kMaxWorldSize}) {
      const std::vector<float> sum = SumOfCopies(limbs, ranks);
      EXPECT_EQ(tail::GetInteger(sum.data()), value * static_cast<uint64_t>(ranks))
          << value << " from " << ranks << " ranks";
    }
  }
}

TEST(StepTailTest, RecordsRoundTrip) {
  std::vector<float> floats(tail::kRankTimes);
  for (const StepRecord& record : {StepRecord(), BusyRecord()}) {
    WriteRecord(record, floats.data());
    EXPECT_EQ(ReadRecord(floats.data()), record);
  }
}

TEST(StepTailTest, RecordsAddUp) {
  const StepRecord one = BusyRecord();
  std::vector<float> floats(tail::kRankTimes);
  WriteRecord(one, floats.data());
  const std::vector<float> sum = SumOfCopies(floats, tail::kMaxWorldSize);
  const StepRecord all = ReadRecord(sum.data());
  const uint64_t ranks = tail::kMaxWorldSize;
  EXPECT_EQ(all.loss_sum_quanta, one.loss_sum_quanta * ranks);
  EXPECT_EQ(all.correct, one.correct * ranks);
  EXPECT_EQ(all.samples, one.samples * ranks);
  EXPECT_EQ(all.digest, one.digest * ranks);  // modulo 2^64
  EXPECT_EQ(all.non_finite, one.non_finite * ranks);
  EXPECT_EQ(all.flags[tail::kFlagRegroup], one.flags[tail::kFlagRegroup] * ranks);
  EXPECT_EQ(all.mean_loss(), one.mean_loss());
}

// In a tail of int64, each quantity is one element, and all wrap.
TEST(StepTailTest, WholeTailsHoldTheSameRecords) {
  StepRecord busy = BusyRecord();
  busy.out_of_range = 1;
  std::vector<int64_t> whole(tail::WholeSize(2), -1);
  for (const StepRecord& record : {StepRecord(), busy}) {
    WriteRecord(record, whole.data());
    EXPECT_EQ(ReadRecord(whole.data()), record);
  }
  for (size_t i = 0; i < whole.size(); ++i) {
    EXPECT_EQ(whole[i] == -1, i >= size_t{tail::kWholeRankTimes}) << i;
  }
  for (int64_t& element : whole) element = static_cast<int64_t>(3 * static_cast<uint64_t>(element));
  const StepRecord sum = ReadRecord(whole.data());
  EXPECT_EQ(sum.digest, 3 * busy.digest);  // modulo 2^64
  EXPECT_EQ(sum.loss_sum_quanta, 3 * busy.loss_sum_quanta);
  EXPECT_EQ(sum.out_of_range, 3u);
  EXPECT_EQ(sum.flags[tail::kFlagRegroup], 3 * busy.flags[tail::kFlagRegroup]);
  EXPECT_EQ(tail::ToNanoseconds(12.5f), 12'500);
  EXPECT_EQ(tail::ToMicroseconds(12'500), 12.5f);
}

TEST(StepTailTest, WritesTheFixedPartAndNothingElse) {
  std::vector<float> floats(tail::Size(2), -1.0f);
  WriteRecord(BusyRecord(), floats.data());
  for (size_t i = 0; i < floats.size(); ++i) {
    EXPECT_EQ(floats[i] < 0, i >= size_t{tail::kRankTimes}) << i;
  }
  EXPECT_EQ(tail::Size(2), tail::Size(1) + 2);
}

TEST(StepTailTest, LossesAreRoundedToTheNearestQuantum) {
  EXPECT_EQ(tail::QuantizeLoss(0.0f), 0u);
  EXPECT_EQ(tail::QuantizeLoss(1.0f), uint64_t{1} << 32);
  EXPECT_EQ(tail::QuantizeLoss(2.302585f), static_cast<uint64_t>(std::llround(2.302585f * 0x1p32)));
  EXPECT_EQ(tail::QuantizeLoss(0x1p-33f), 1u);  // half a quantum goes up
  EXPECT_EQ(tail::QuantizeLoss(0x1p-34f), 0u);
  EXPECT_EQ(tail::QuantizeLoss(0x1p30f), uint64_t{1} << 62);
  EXPECT_EQ(tail::QuantizeLoss(0x1p31f), uint64_t{1} << 63);
  EXPECT_EQ(tail::QuantizeLoss(1e38f), uint64_t{1} << 63);
}

TEST(StepTailTest, MeansOfNothingAreZero) {
  EXPECT_EQ(StepRecord().mean_loss(), 0.0);
  EXPECT_EQ(StepRecord().accuracy(), 0.0);
  EXPECT_DOUBLE_EQ(BusyRecord().mean_loss(), 295.5 / 128);
  EXPECT_DOUBLE_EQ(BusyRecord().accuracy(), 111.0 / 128);
}

}  // namespace
}  // namespace ringmaster
