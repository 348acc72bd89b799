#include "coordinator/key_value_table.h"

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class KeyValueTableTest : public ::testing::Test {
 protected:
  KeyValueTableTest() { table_.Begin(1); }

  // Each answer that comes is noted as "value" or its code.
  KeyValueTable::Ticket Get(uint64_t generation, const std::string& key) {
    return table_.Get(generation, key, [this](absl::StatusOr<std::string> value) {
      answers_.push_back(value.ok() ? *value : absl::StatusCodeToString(value.status().code()));
    });
  }

  KeyValueTable table_;
  std::vector<std::string> answers_;
};

TEST_F(KeyValueTableTest, SetThenGet) {
  ASSERT_TRUE(table_.Set(1, "k", std::string("a\0b", 3)).ok());
  Get(1, "k");
  EXPECT_THAT(answers_, ElementsAre(std::string("a\0b", 3)));
}

TEST_F(KeyValueTableTest, GetWaitsForSet) {
  Get(1, "k");
  Get(1, "k");
  Get(1, "other");
  EXPECT_THAT(answers_, IsEmpty());
  ASSERT_TRUE(table_.Set(1, "k", "v").ok());
  EXPECT_THAT(answers_, ElementsAre("v", "v"));
}

TEST_F(KeyValueTableTest, SameValueAgainIsFineAnotherIsNot) {
  ASSERT_TRUE(table_.Set(1, "k", "v").ok());
  EXPECT_TRUE(table_.Set(1, "k", "v").ok());
  EXPECT_EQ(table_.Set(1, "k", "w").code(), absl::StatusCode::kAlreadyExists);
  Get(1, "k");
  EXPECT_THAT(answers_, ElementsAre("v"));
}

TEST_F(KeyValueTableTest, OtherGenerationsAreRefused) {
  for (const uint64_t generation : {0, 2}) {
    EXPECT_EQ(table_.Set(generation, "k", "v").code(), absl::StatusCode::kFailedPrecondition);
    Get(generation, "k");
  }
  EXPECT_THAT(answers_, ElementsAre("FAILED_PRECONDITION", "FAILED_PRECONDITION"));
}

TEST_F(KeyValueTableTest, NewGenerationForgetsAndReleases) {
  ASSERT_TRUE(table_.Set(1, "k", "v").ok());
  Get(1, "never");
  table_.Begin(2);
  EXPECT_THAT(answers_, ElementsAre("FAILED_PRECONDITION"));
  Get(2, "k");
  EXPECT_EQ(answers_.size(), 1u);
  ASSERT_TRUE(table_.Set(2, "k", "w").ok());
  EXPECT_THAT(answers_, ElementsAre("FAILED_PRECONDITION", "w"));
}

TEST_F(KeyValueTableTest, NothingIsTakenBeforeTheFirstGeneration) {
  KeyValueTable table;
  EXPECT_EQ(table.Set(0, "k", "v").code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(KeyValueTableTest, CancelAnswersOnce) {
  const auto first = Get(1, "k");
  Get(1, "k");
  table_.Cancel(first);
  table_.Cancel(first);
  EXPECT_THAT(answers_, ElementsAre("CANCELLED"));
  ASSERT_TRUE(table_.Set(1, "k", "v").ok());
  EXPECT_THAT(answers_, ElementsAre("CANCELLED", "v"));
  table_.Cancel(first);
  EXPECT_EQ(answers_.size(), 2u);
}

TEST_F(KeyValueTableTest, LimitsOfSize) {
  EXPECT_TRUE(table_.Set(1, "k", std::string(KeyValueTable::kMaxValueBytes, 'x')).ok());
  EXPECT_EQ(table_.Set(1, "l", std::string(KeyValueTable::kMaxValueBytes + 1, 'x')).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(table_.Set(1, std::string(KeyValueTable::kMaxKeyBytes, 'k'), "v").ok());
  const std::string long_key(KeyValueTable::kMaxKeyBytes + 1, 'k');
  EXPECT_EQ(table_.Set(1, long_key, "v").code(), absl::StatusCode::kResourceExhausted);
  Get(1, long_key);
  EXPECT_THAT(answers_, ElementsAre("RESOURCE_EXHAUSTED"));
}

TEST_F(KeyValueTableTest, LimitOfKeys) {
  for (size_t i = 0; i < KeyValueTable::kMaxKeys; ++i) {
    ASSERT_TRUE(table_.Set(1, absl::StrCat(i), "v").ok());
  }
  EXPECT_EQ(table_.Set(1, "one more", "v").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(table_.Set(1, "0", "v").ok());
  table_.Begin(2);
  EXPECT_TRUE(table_.Set(2, "one more", "v").ok());
}

TEST_F(KeyValueTableTest, LimitOfBytes) {
  const std::string value(KeyValueTable::kMaxValueBytes, 'x');
  const size_t most = KeyValueTable::kMaxTotalBytes / KeyValueTable::kMaxValueBytes;
  for (size_t i = 0; i < most; ++i) ASSERT_TRUE(table_.Set(1, absl::StrCat(i), value).ok());
  EXPECT_EQ(table_.Set(1, "x", "v").code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(KeyValueTableTest, LimitOfWaiters) {
  std::atomic<int> answers{0};
  for (size_t i = 0; i < KeyValueTable::kMaxKeys; ++i) {
    table_.Get(1, "k", [&answers](const absl::StatusOr<std::string>&) { ++answers; });
  }
  EXPECT_EQ(answers, 0);
  Get(1, "k");
  EXPECT_THAT(answers_, ElementsAre("RESOURCE_EXHAUSTED"));
  ASSERT_TRUE(table_.Set(1, "k", "v").ok());
  EXPECT_EQ(answers, static_cast<int>(KeyValueTable::kMaxKeys));
}

// A callback may call back: no lock is held.
TEST_F(KeyValueTableTest, AnswerMaySet) {
  table_.Get(1, "a", [this](const absl::StatusOr<std::string>& value) {
    ASSERT_TRUE(value.ok());
    EXPECT_TRUE(table_.Set(1, "b", *value + "!").ok());
  });
  Get(1, "b");
  ASSERT_TRUE(table_.Set(1, "a", "v").ok());
  EXPECT_THAT(answers_, ElementsAre("v!"));
}

// Every waiter is answered exactly once, whoever comes first: the key, its canceller, or the end.
TEST_F(KeyValueTableTest, ExactlyOneAnswerAmongThreads) {
  constexpr int kKeys = 2000;
  std::vector<std::atomic<int>> answers(kKeys);
  std::vector<KeyValueTable::Ticket> tickets(kKeys);
  for (int i = 0; i < kKeys; ++i) {
    tickets[i] = table_.Get(1, absl::StrCat(i),
                            [&answers, i](const absl::StatusOr<std::string>&) { ++answers[i]; });
  }
  std::thread setter([&] {
    for (int i = 0; i < kKeys; ++i) table_.Set(1, absl::StrCat(i), "v").IgnoreError();
  });
  std::thread canceller([&] {
    for (int i = kKeys - 1; i >= 0; --i) table_.Cancel(tickets[i]);
  });
  std::thread ender([&] { table_.Begin(2); });
  setter.join();
  canceller.join();
  ender.join();
  for (int i = 0; i < kKeys; ++i) EXPECT_EQ(answers[i], 1) << i;
}

}  // namespace
}  // namespace ringmaster
