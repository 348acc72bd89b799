// The conformance suite of worker/communicator.h: every implementation, several world sizes, odd
// lengths. Inputs are integers small enough that sums in fp32 are exact in any order.

#include <cstdint>
#include <cstring>
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/worker/communicator_fixture.h"

namespace ringmaster {
namespace {

struct Member {
  const char* implementation;
  int world_size;

  friend std::ostream& operator<<(std::ostream& out, const Member& member) {
    return out << member.implementation << " " << member.world_size;
  }
};

absl::StatusOr<World> MakeWorldOf(const Member& member) {
  const std::string implementation = member.implementation;
  if (implementation == "solo") return MakeSoloWorld();
  if (implementation == "gloo") return MakeGlooWorld(member.world_size);
  return MakeNcclWorld(member.world_size);
}

class CommunicatorTest : public testing::TestWithParam<Member> {
 protected:
  void SetUp() override {
    auto world = MakeWorldOf(GetParam());
    if (absl::IsUnavailable(world.status())) {
      GTEST_SKIP() << "no " << GetParam() << " here: " << world.status().message();
    }
    ASSERT_EQ(world.status(), absl::OkStatus());
    world_ = *std::move(world);
  }

  int world_size() const { return GetParam().world_size; }

  // Sums `inputs`, one vector for each rank, and returns what each rank ends with.
  template <typename T>
  std::vector<std::vector<T>> AllReduce(const std::vector<std::vector<T>>& inputs) {
    constexpr Element kElement = sizeof(T) == sizeof(float) ? Element::kFloat32 : Element::kInt64;
    std::vector<std::vector<T>> outputs(inputs.size());
    ForEachRank(world_size(), [&](int rank) {
      TestRank& self = *world_[rank];
      const DeviceSpan data = self.data(inputs[rank].size(), kElement);
      ASSERT_EQ(self.Write(inputs[rank].data(), data), absl::OkStatus());
      ASSERT_EQ(self.communicator().AllReduceSum(data), absl::OkStatus());
      outputs[rank].resize(data.count);
      ASSERT_EQ(self.Read(data, outputs[rank].data()), absl::OkStatus());
    });
    return outputs;
  }

  // Of numbers that need all 64 bits, and wrap.
  void ExpectIntegerSum(size_t count) {
    std::vector<std::vector<uint64_t>> inputs(world_size(), std::vector<uint64_t>(count));
    std::vector<uint64_t> sum(count);
    for (int rank = 0; rank < world_size(); ++rank) {
      for (size_t i = 0; i < count; ++i) {
        inputs[rank][i] = (i + 1) * 0x9E3779B97F4A7C15u - rank * 0xD1B54A32D192ED03u;
        sum[i] += inputs[rank][i];
      }
    }
    const auto outputs = AllReduce(inputs);
    for (int rank = 0; rank < world_size(); ++rank) {
      EXPECT_EQ(outputs[rank], sum) << count << " integers, rank " << rank;
    }
  }

  void ExpectExactSum(size_t count) {
    std::vector<std::vector<float>> inputs(world_size(), std::vector<float>(count));
    std::vector<float> sum(count);
    for (int rank = 0; rank < world_size(); ++rank) {
      for (size_t i = 0; i < count; ++i) {
        inputs[rank][i] = static_cast<float>(static_cast<int>(i % 4093) - 1000 * rank);
        sum[i] += inputs[rank][i];
      }
    }
    const auto outputs = AllReduce(inputs);
    for (int rank = 0; rank < world_size(); ++rank) {
      EXPECT_EQ(outputs[rank], sum) << count << " floats, rank " << rank;
    }
  }

  World world_;
};

TEST_P(CommunicatorTest, KnowsItsPlace) {
  for (int rank = 0; rank < world_size(); ++rank) {
    EXPECT_EQ(world_[rank]->communicator().rank(), rank);
    EXPECT_EQ(world_[rank]->communicator().world_size(), world_size());
    EXPECT_STREQ(world_[rank]->communicator().name(), GetParam().implementation);
    EXPECT_EQ(world_[rank]->communicator().Poll(), absl::OkStatus());
  }
}

TEST_P(CommunicatorTest, SumsAnyLengthExactly) {
  const size_t longest = LongestCount(world_size());
  const size_t fewer_than_ranks = world_size() - 1;
  for (const size_t count :
       {size_t{0}, size_t{1}, size_t{2}, fewer_than_ranks, size_t{7919}, longest - 1, longest}) {
    ExpectExactSum(count);
  }
}

TEST_P(CommunicatorTest, SumsIntegersOfAnyLength) {
  const size_t longest = LongestCount(world_size());
  const size_t fewer_than_ranks = world_size() - 1;
  for (const size_t count :
       {size_t{0}, size_t{1}, fewer_than_ranks, size_t{7919}, longest - 1, longest}) {
    ExpectIntegerSum(count);
  }
}

// In the same memory, too.
TEST_P(CommunicatorTest, ElementsMayChangeFromCallToCall) {
  for (const size_t count : {1000, 100, 2000}) {
    ExpectExactSum(count);
    ExpectIntegerSum(count);
  }
}

// As training does: the gradient many times, then the tail alone, then the gradient again.
TEST_P(CommunicatorTest, LengthsMayChangeFromCallToCall) {
  for (int round = 0; round < 20; ++round) {
    ExpectExactSum(LongestCount(world_size()));
    ExpectExactSum(7);
  }
}

// Here the order of the sum matters, and all ranks must have taken the same.
TEST_P(CommunicatorTest, EveryRankHasTheSameBits) {
  const size_t count = LongestCount(world_size());
  std::vector<std::vector<float>> inputs(world_size(), std::vector<float>(count));
  uint64_t state = 1;
  for (auto& input : inputs) {
    for (float& value : input) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      const auto mantissa = static_cast<float>(static_cast<int32_t>(state >> 32));
      value = mantissa * ((state >> 20 & 7) == 0 ? 1e-6f : 1e-9f);
    }
  }
  const auto outputs = AllReduce(inputs);
  for (int rank = 1; rank < world_size(); ++rank) {
    EXPECT_EQ(std::memcmp(outputs[0].data(), outputs[rank].data(), count * sizeof(float)), 0)
        << "rank " << rank;
  }
}

TEST_P(CommunicatorTest, AfterAbortEveryCallIsAborted) {
  ExpectExactSum(10);
  for (const auto& rank : world_) {
    rank->communicator().Abort();
    rank->communicator().Abort();
    for (int call = 0; call < 2; ++call) {
      EXPECT_EQ(rank->communicator().AllReduceSum(rank->data(10)).code(),
                absl::StatusCode::kAborted);
    }
    EXPECT_EQ(rank->communicator().AllReduceSum(rank->data(0)).code(), absl::StatusCode::kAborted);
  }
}

TEST_P(CommunicatorTest, AbortBeforeTheFirstCall) {
  for (const auto& rank : world_) {
    rank->communicator().Abort();
    EXPECT_EQ(rank->communicator().AllReduceSum(rank->data(10)).code(), absl::StatusCode::kAborted);
  }
}

INSTANTIATE_TEST_SUITE_P(All, CommunicatorTest,
                         testing::Values(Member{"solo", 1}, Member{"gloo", 2}, Member{"gloo", 3},
                                         Member{"gloo", 5}, Member{"nccl", 1}, Member{"nccl", 2}),
                         [](const testing::TestParamInfo<Member>& info) {
                           return absl::StrCat(info.param.implementation, "_",
                                               info.param.world_size);
                         });

}  // namespace
}  // namespace ringmaster
