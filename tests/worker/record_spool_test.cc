#include "worker/record_spool.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

constexpr size_t kPlenty = 1 << 20;

// The record of index i says so.
GlobalRecord Record(uint64_t index) {
  GlobalRecord record;
  record.set_correct(index + 1);
  return record;
}

void Fill(RecordSpool* spool, uint64_t end) {
  while (spool->end() < end) spool->Add(Record(spool->end()));
}

// Checks that it holds exactly [begin, end), each in its place.
void ExpectHolds(const RecordSpool& spool, uint64_t begin, uint64_t end) {
  EXPECT_EQ(spool.begin(), begin);
  EXPECT_EQ(spool.end(), end);
  const StepRecords records = spool.From(begin, kPlenty, kPlenty);
  ASSERT_EQ(records.records_size(), static_cast<int>(end - begin));
  for (int i = 0; i < records.records_size(); ++i) {
    EXPECT_EQ(records.records(i).correct(), begin + i + 1);
  }
}

TEST(RecordSpool, KeepsFromTheLastAcknowledgedOn) {
  RecordSpool spool(kPlenty);
  Fill(&spool, 10);
  spool.Acknowledge(4);
  ExpectHolds(spool, 4, 10);
  spool.Acknowledge(3);
  ExpectHolds(spool, 4, 10);
}

TEST(RecordSpool, RecordAcknowledgedBeforeItCameIsNotKept) {
  RecordSpool spool(kPlenty);
  spool.Acknowledge(2);
  Fill(&spool, 3);
  ExpectHolds(spool, 2, 3);
}

TEST(RecordSpool, BytesAreThoseOfTheRecordsHeld) {
  RecordSpool spool(kPlenty);
  Fill(&spool, 10);
  spool.Acknowledge(7);
  EXPECT_EQ(spool.bytes(), 3 * Record(8).ByteSizeLong());
  spool.ResumeAt(8, 7);
  EXPECT_EQ(spool.bytes(), Record(8).ByteSizeLong());
}

TEST(RecordSpool, IsFullAtItsBoundUntilSomethingIsAcknowledged) {
  RecordSpool spool(3 * Record(0).ByteSizeLong());
  Fill(&spool, 2);
  EXPECT_FALSE(spool.full());
  Fill(&spool, 3);
  EXPECT_TRUE(spool.full());
  spool.Acknowledge(1);
  EXPECT_FALSE(spool.full());
}

TEST(RecordSpool, ResumedEarlierItDropsWhatWasLost) {
  RecordSpool spool(kPlenty);
  Fill(&spool, 10);
  spool.ResumeAt(6, 2);
  ExpectHolds(spool, 2, 6);
  Fill(&spool, 8);
  ExpectHolds(spool, 2, 8);
}

TEST(RecordSpool, ResumedBeforeOrBehindAllItHoldsItStartsEmptyThere) {
  RecordSpool spool(kPlenty);
  Fill(&spool, 10);
  spool.ResumeAt(12, 2);
  ExpectHolds(spool, 12, 12);
  spool.Acknowledge(12);
  Fill(&spool, 15);
  spool.ResumeAt(3, 0);
  ExpectHolds(spool, 3, 3);
}

// Training went back to a checkpoint: what is trained anew may be known to the coordinator already,
// or, if it went back too, not any more.
TEST(RecordSpool, ResumptionSetsWhatIsSafe) {
  RecordSpool spool(kPlenty);
  Fill(&spool, 10);
  spool.Acknowledge(10);
  spool.ResumeAt(4, 10);
  Fill(&spool, 11);
  ExpectHolds(spool, 10, 11);
  spool.ResumeAt(4, 4);
  Fill(&spool, 11);
  ExpectHolds(spool, 4, 11);
}

TEST(RecordSpool, NamesTheGap) {
  RecordSpool spool(kPlenty);
  Fill(&spool, 10);
  spool.ResumeAt(10, 5);
  EXPECT_EQ(spool.CheckFrom(5), absl::OkStatus());
  EXPECT_EQ(spool.CheckFrom(12), absl::OkStatus());
  const absl::Status status = spool.CheckFrom(3);
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(status.message()), HasSubstr("[3, 5) are lost"));
}

TEST(RecordSpool, HandsOutInPieces) {
  RecordSpool spool(kPlenty);
  Fill(&spool, 10);
  EXPECT_EQ(spool.From(2, 3, kPlenty).records_size(), 3);
  EXPECT_EQ(spool.From(2, kPlenty, 1).records_size(), 1);
  EXPECT_EQ(spool.From(10, kPlenty, kPlenty).records_size(), 0);
  EXPECT_EQ(spool.From(2, 3, kPlenty).records(0).correct(), 3u);
}

}  // namespace
}  // namespace ringmaster
