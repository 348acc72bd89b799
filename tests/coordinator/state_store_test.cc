#include "coordinator/state_store.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

// Large enough for several chunks.
constexpr size_t kParameters = 300'001;

StoredStatePtr MakeState(uint32_t epoch, Position::Phase phase = Position::TRAIN) {
  auto stored = std::make_shared<StoredState>();
  stored->generation = 3;
  stored->position.set_epoch(epoch);
  stored->position.set_phase(phase);
  stored->state.step = 77;
  for (size_t i = 0; i < kParameters; ++i) {
    const auto value = static_cast<float>(i);
    stored->state.parameters.push_back(value);
    stored->state.first_moment.push_back(-value);
    stored->state.second_moment.push_back(0.5f * value);
  }
  stored->digest = StateSha256(stored->state);
  return stored;
}

class StateAssemblerTest : public ::testing::Test {
 protected:
  StateAssemblerTest() {
    StateChunker chunker("run", state_);
    StateChunk chunk;
    while (chunker.Next(&chunk)) chunks_.push_back(chunk);
  }

  absl::StatusOr<StoredStatePtr> Assemble(size_t num_parameters = kParameters) {
    StateAssembler assembler(num_parameters);
    for (const StateChunk& chunk : chunks_) {
      if (const absl::Status status = assembler.Append(chunk); !status.ok()) return status;
    }
    return assembler.Finish();
  }

  void ExpectRefused(absl::StatusCode code, const std::string& message) {
    const auto state = Assemble();
    EXPECT_EQ(state.status().code(), code) << state.status();
    EXPECT_THAT(std::string(state.status().message()), HasSubstr(message));
  }

  const StoredStatePtr state_ = MakeState(2);
  std::vector<StateChunk> chunks_;
};

TEST_F(StateAssemblerTest, ChunksAndBack) {
  EXPECT_GT(chunks_.size(), 3u);
  EXPECT_EQ(chunks_[0].run_id(), "run");
  EXPECT_EQ(chunks_[1].run_id(), "");
  for (const StateChunk& chunk : chunks_) EXPECT_LT(chunk.ByteSizeLong(), size_t{1} << 20);
  const auto state = Assemble();
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ((*state)->state, state_->state);
  EXPECT_EQ((*state)->generation, 3u);
  EXPECT_EQ((*state)->position.epoch(), 2u);
  EXPECT_EQ((*state)->digest, state_->digest);
}

TEST_F(StateAssemblerTest, ChunksMayEndAnywhere) {
  std::string bytes;
  for (const StateChunk& chunk : chunks_) bytes += chunk.data();
  chunks_.resize(1);
  chunks_[0].set_data(bytes.substr(0, 3));
  for (size_t at = 3; at < bytes.size(); at += 1'000'003) {
    chunks_.emplace_back().set_data(bytes.substr(at, 1'000'003));
  }
  EXPECT_TRUE(Assemble().ok());
}

TEST_F(StateAssemblerTest, OtherModel) {
  EXPECT_EQ(Assemble(kParameters + 1).status().code(), absl::StatusCode::kInvalidArgument);
  chunks_[0].set_num_parameters(uint64_t{1} << 62);
  ExpectRefused(absl::StatusCode::kInvalidArgument, "wanted 300001 parameters");
}

TEST_F(StateAssemblerTest, BytesMissing) {
  chunks_.pop_back();
  ExpectRefused(absl::StatusCode::kInvalidArgument, "instead of 3600012");
  chunks_.clear();
  ExpectRefused(absl::StatusCode::kInvalidArgument, "0 bytes instead of 3600012");
}

TEST_F(StateAssemblerTest, BytesTooMany) {
  chunks_.emplace_back().set_data("x");
  ExpectRefused(absl::StatusCode::kInvalidArgument, "more than the 3600012 bytes");
}

TEST_F(StateAssemblerTest, OneBitFlipped) {
  (*chunks_[2].mutable_data())[1000] ^= 1;
  ExpectRefused(absl::StatusCode::kDataLoss, "damaged");
}

TEST_F(StateAssemblerTest, StepIsPartOfTheDigest) {
  chunks_[0].set_step(78);
  ExpectRefused(absl::StatusCode::kDataLoss, "damaged");
}

StoredStatePtr OfStep(uint64_t step) {
  auto stored = std::make_shared<StoredState>();
  stored->state.step = step;
  stored->digest = StateSha256(stored->state);
  return stored;
}

TEST(StateStoreTest, KeepsTheLastTwo) {
  StateStore store;
  EXPECT_EQ(store.newest(), nullptr);
  const StoredStatePtr first = OfStep(1);
  const StoredStatePtr second = OfStep(2);
  const StoredStatePtr third = OfStep(3);
  EXPECT_EQ(store.Find(first->digest), nullptr);
  store.Put(first);
  EXPECT_EQ(store.newest(), first);
  store.Put(second);
  EXPECT_EQ(store.Find(first->digest), first);
  EXPECT_EQ(store.Find(second->digest), second);
  store.Put(third);
  EXPECT_EQ(store.Find(first->digest), nullptr);
  EXPECT_EQ(store.Find(second->digest), second);
  EXPECT_EQ(store.newest(), third);
}

// The same twice does not push out the other.
TEST(StateStoreTest, OneThatComesAgain) {
  StateStore store;
  const StoredStatePtr first = OfStep(1);
  const StoredStatePtr second = OfStep(2);
  store.Put(first);
  store.Put(second);
  store.Put(OfStep(2));
  EXPECT_EQ(store.Find(first->digest), first);
  store.Put(first);
  EXPECT_EQ(store.newest(), first);
  EXPECT_NE(store.Find(second->digest), nullptr);
}

}  // namespace
}  // namespace ringmaster
