#include "common/sampling_plan.h"

#include <numeric>
#include <string>
#include <vector>

#include "common/philox.h"
#include "common/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;

constexpr SamplingPlan kMnist{/*seed=*/1, /*num_samples=*/60'000, /*global_batch=*/128};

// `range` of `order`, as sample ids.
std::vector<uint32_t> Ids(const Permutation& order, PositionRange range) {
  std::vector<uint32_t> ids;
  for (uint32_t position = range.first; position < range.end(); ++position) {
    ids.push_back(order(position));
  }
  return ids;
}

std::vector<uint32_t> Whole(const Permutation& order) { return Ids(order, {0, order.size()}); }

std::string Digest(const std::vector<uint32_t>& ids) {
  return Sha256Hex({reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof ids[0]});
}

// The known answers that the authors of the Philox paper publish (Random123, kat_vectors).
TEST(PhiloxTest, KnownAnswers) {
  EXPECT_THAT(Philox(0, {{0, 0, 0, 0}}).word,
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(Philox(~uint64_t{0}, {{~0u, ~0u, ~0u, ~0u}}).word,
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(Philox(0x299f31d0a4093822, {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}).word,
              ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(PhiloxTest, UnitFloatStaysBelowOne) {
  EXPECT_EQ(UnitFloat(0), 0.0f);
  EXPECT_EQ(UnitFloat(0xFF), 0.0f);
  EXPECT_EQ(UnitFloat(0x80000000), 0.5f);
  EXPECT_EQ(UnitFloat(0xFFFFFFFF), 1.0f - 0x1p-24f);
}

class PermutationTest : public ::testing::TestWithParam<uint32_t> {};

TEST_P(PermutationTest, VisitsEachSampleExactlyOnce) {
  const uint32_t size = GetParam();
  for (const uint64_t seed : {0, 1, 2}) {
    for (const uint32_t epoch : {0, 1, 5}) {
      std::vector<int> visits(size);
      for (const uint32_t id : Whole(Permutation(seed, epoch, size))) {
        ASSERT_LT(id, size);
        ++visits[id];
      }
      EXPECT_EQ(visits, std::vector<int>(size, 1)) << "seed " << seed << ", epoch " << epoch;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, PermutationTest,
                         ::testing::Values(1, 2, 3, 4, 5, 16, 17, 97, 255, 256, 257, 1024, 10'000,
                                           60'000, 65'536, 65'537));

TEST(PermutationGoldenTest, AnswersFromAnIndependentProgram) {
  const auto first = Whole(Permutation(1, 0, 60'000));
  EXPECT_THAT(std::vector<uint32_t>(first.begin(), first.begin() + 8),
              ElementsAre(29196, 38516, 41846, 34989, 13542, 2643, 59531, 11645));
  EXPECT_EQ(first.back(), 1741u);
  EXPECT_EQ(Digest(first), "3d1b47c4c4c85cde37acc1f0a265e821d9b00740feaf52430f0f3285f2debd74");
  EXPECT_EQ(Digest(Whole(Permutation(1, 1, 60'000))),
            "ec3f76cb76e3e7405a8940f4feb4baeb0b7dc767331bdaa334122b24ac3471e0");
  EXPECT_EQ(Digest(Whole(Permutation(2, 0, 60'000))),
            "2a27481cf7c0e4256f91301354f7f1c8d285b422b7cabf02d00585619c579ada");
  EXPECT_EQ(Digest(Whole(Permutation(1, 0, 97))),
            "350bf819d360ac98cfe4556d7e7ec9f1dbbd5ef9715688fe6f3bb7a9fd592ccb");
}

TEST(PermutationSizeTest, TheLargestSizeStaysInside) {
  const uint32_t size = uint32_t{1} << 31;
  const Permutation order(1, 0, size);
  for (const uint32_t position : {0u, 1u, size / 2, size - 1}) EXPECT_LT(order(position), size);
}

TEST(SliceTest, UnevenSlicesDifferByOneAtMost) {
  const PositionRange whole{1000, 128};
  EXPECT_EQ(SliceForRank(whole, 0, 3), (PositionRange{1000, 43}));
  EXPECT_EQ(SliceForRank(whole, 1, 3), (PositionRange{1043, 43}));
  EXPECT_EQ(SliceForRank(whole, 2, 3), (PositionRange{1086, 42}));
  EXPECT_EQ(SliceForRank(whole, 0, 1), whole);
}

TEST(SliceTest, MoreRanksThanSamplesLeavesSomeEmpty) {
  EXPECT_EQ(SliceForRank({10, 2}, 0, 4), (PositionRange{10, 1}));
  EXPECT_EQ(SliceForRank({10, 2}, 1, 4), (PositionRange{11, 1}));
  EXPECT_EQ(SliceForRank({10, 2}, 2, 4), (PositionRange{12, 0}));
  EXPECT_EQ(SliceForRank({10, 2}, 3, 4), (PositionRange{12, 0}));
}

// What slices were before they could be cut in units.
PositionRange SliceOfSamples(PositionRange whole, uint32_t rank, uint32_t world_size) {
  const uint32_t base = whole.count / world_size;
  const uint32_t larger = whole.count % world_size;
  const uint32_t before = rank * base + std::min(rank, larger);
  return {whole.first + before, base + (rank < larger ? 1u : 0u)};
}

TEST(SliceTest, UnitsOfOneAreSamples) {
  for (const uint32_t count : {0u, 1u, 16u, 96u, 128u, 4'000'000'000u}) {
    for (const uint32_t world_size : {1u, 2u, 3u, 5u, 129u}) {
      for (uint32_t rank = 0; rank < world_size; ++rank) {
        ASSERT_EQ(SliceForRank({100, count}, rank, world_size),
                  SliceOfSamples({100, count}, rank, world_size));
      }
    }
  }
}

TEST(SliceTest, UnitsStayWhole) {
  const PositionRange whole{1000, 128};
  EXPECT_EQ(SliceForRank(whole, 0, 3, 16), (PositionRange{1000, 48}));
  EXPECT_EQ(SliceForRank(whole, 1, 3, 16), (PositionRange{1048, 48}));
  EXPECT_EQ(SliceForRank(whole, 2, 3, 16), (PositionRange{1096, 32}));
  // The shorter last unit, and ranks that there is no unit for.
  EXPECT_EQ(SliceForRank({10, 37}, 2, 4, 16), (PositionRange{42, 5}));
  EXPECT_EQ(SliceForRank({10, 37}, 3, 4, 16), (PositionRange{47, 0}));
  // Units end past what 32 bits hold.
  EXPECT_EQ(SliceForRank({0, 0xFFFF'FFFF}, 0, 1, 16), (PositionRange{0, 0xFFFF'FFFF}));
}

TEST(SliceTest, MicroShardsCoverEverySampleOnceAtAnyWorldSize) {
  SamplingPlan plan = kMnist;
  plan.granularity = SliceGranularity(/*reproducible=*/true);
  EXPECT_EQ(SliceGranularity(/*reproducible=*/false), 1u);
  for (const uint32_t batch : {1u, 15u, 16u, 100u, 128u, 60'000u}) {
    plan.global_batch = batch;
    for (const uint32_t world_size : {1u, 2u, 3u, 5u, 8u, 64u}) {
      for (const uint32_t step : {0u, plan.steps_per_epoch() - 1}) {
        const PositionRange whole = plan.Batch(step);
        uint32_t next = whole.first;
        for (uint32_t rank = 0; rank < world_size; ++rank) {
          const PositionRange slice = plan.Slice(whole, rank, world_size);
          ASSERT_EQ(slice.first, next);
          ASSERT_TRUE(slice.count == 0 || (slice.first - whole.first) % kMicroShard == 0);
          next = slice.end();
        }
        ASSERT_EQ(next, whole.end());
      }
    }
  }
}

TEST(SamplingPlanTest, TheLastBatchOfAnEpochIsSmaller) {
  EXPECT_EQ(kMnist.steps_per_epoch(), 469u);
  EXPECT_EQ(kMnist.Batch(0), (PositionRange{0, 128}));
  EXPECT_EQ(kMnist.Batch(467), (PositionRange{59'776, 128}));
  EXPECT_EQ(kMnist.Batch(468), (PositionRange{59'904, 96}));
}

TEST(SamplingPlanTest, BatchesThatDivideOrExceedTheDataSet) {
  const SamplingPlan even{1, 60'000, 100};
  EXPECT_EQ(even.steps_per_epoch(), 600u);
  EXPECT_EQ(even.Batch(599), (PositionRange{59'900, 100}));
  const SamplingPlan larger{1, 100, 128};
  EXPECT_EQ(larger.steps_per_epoch(), 1u);
  EXPECT_EQ(larger.Batch(0), (PositionRange{0, 100}));
}

class WorldSizeTest : public ::testing::TestWithParam<uint32_t> {};

// What the ranks gather, in rank order, is the epoch's order: nothing twice, nothing left out.
TEST_P(WorldSizeTest, TheBatchSequenceDoesNotDependOnTheWorldSize) {
  const uint32_t world_size = GetParam();
  const Permutation order = kMnist.Order(0);
  std::vector<uint32_t> gathered;
  for (uint32_t step = 0; step < kMnist.steps_per_epoch(); ++step) {
    std::vector<uint32_t> batch;
    for (uint32_t rank = 0; rank < world_size; ++rank) {
      const auto slice = Ids(order, SliceForRank(kMnist.Batch(step), rank, world_size));
      batch.insert(batch.end(), slice.begin(), slice.end());
    }
    ASSERT_EQ(batch, Ids(order, kMnist.Batch(step))) << "step " << step;
    gathered.insert(gathered.end(), batch.begin(), batch.end());
  }
  EXPECT_EQ(Digest(gathered), "3d1b47c4c4c85cde37acc1f0a265e821d9b00740feaf52430f0f3285f2debd74");
}

INSTANTIATE_TEST_SUITE_P(Workers, WorldSizeTest, ::testing::Values(1, 2, 3, 5, 64, 129));

TEST(SampleFingerprintTest, SumsTellSetsApart) {
  // SplitMix64's first output for seed 0, and a sum from an independent program.
  EXPECT_EQ(SampleFingerprint(0), 0xe220a8397b1dcdafu);
  uint64_t sum = 0;
  for (const uint32_t id : Whole(kMnist.Order(3))) sum += SampleFingerprint(id);
  EXPECT_EQ(sum, 0xfebcebea3e71885au);
  // One sample in another's place shows.
  EXPECT_NE(sum - SampleFingerprint(5) + SampleFingerprint(6), sum);
}

}  // namespace
}  // namespace ringmaster
