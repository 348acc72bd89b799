#include "coordinator/record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "tests/coordinator/event_reader.h"
#include "tests/temporary_directory.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

struct Result {
  std::vector<std::string> records;
  RecordEnd end = RecordEnd::kClean;
  uint64_t offset = 0;
};

class RecordReaderTest : public ::testing::Test {
 protected:
  Result Read(const std::string& bytes) {
    const std::string path = directory_.File("records");
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    Result result;
    auto reader = RecordReader::Open(path);
    EXPECT_TRUE(reader.ok()) << reader.status();
    for (std::string data;;) {
      const auto more = reader->Next(&data);
      EXPECT_TRUE(more.ok()) << more.status();
      if (!more.ok() || !*more) break;
      result.records.push_back(data);
    }
    result.end = reader->end();
    result.offset = reader->offset();
    return result;
  }

  TemporaryDirectory directory_;
};

std::string Records(const std::vector<std::string>& records) {
  std::string bytes;
  for (const std::string& record : records) AppendRecord(record, &bytes);
  return bytes;
}

TEST(RecordTest, IsFramed) {
  const std::string bytes = Records({"", std::string("a\0b", 3)});
  ASSERT_EQ(bytes.size(), 16u + 19u);
  EXPECT_EQ(bytes.substr(16, 8), std::string("\3\0\0\0\0\0\0\0", 8));
  EXPECT_THAT(tensorboard::ParseRecords(bytes), ElementsAre("", std::string("a\0b", 3)));
}

TEST_F(RecordReaderTest, ReadsWhatWasAppended) {
  const std::vector<std::string> records = {"", "one", std::string(100000, 'x'), "two"};
  const std::string bytes = Records(records);
  const Result result = Read(bytes);
  EXPECT_EQ(result.records, records);
  EXPECT_EQ(result.end, RecordEnd::kClean);
  EXPECT_EQ(result.offset, bytes.size());
}

TEST_F(RecordReaderTest, NothingIsACleanEnd) {
  const Result result = Read("");
  EXPECT_THAT(result.records, IsEmpty());
  EXPECT_EQ(result.end, RecordEnd::kClean);
}

TEST_F(RecordReaderTest, CutAtEveryByte) {
  const std::string first = Records({"first"});
  const std::string bytes = first + Records({"second"});
  for (size_t size = 1; size < bytes.size(); ++size) {
    const Result result = Read(bytes.substr(0, size));
    const bool whole = size >= first.size();
    EXPECT_EQ(result.records.size(), whole ? 1u : 0u) << size;
    EXPECT_EQ(result.offset, whole ? first.size() : 0u) << size;
    EXPECT_EQ(result.end, size == first.size() ? RecordEnd::kClean : RecordEnd::kTorn) << size;
  }
}

TEST_F(RecordReaderTest, EveryFlippedBitIsDamage) {
  const std::string bytes = Records({"first", "second", "third"});
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    const Result result = Read(flipped);
    EXPECT_EQ(result.end, RecordEnd::kDamaged) << "bit " << bit;
    EXPECT_LT(result.records.size(), 3u);
    EXPECT_LE(result.offset, bit / 8);
  }
}

TEST_F(RecordReaderTest, ZerosToTheEndAreATornRecord) {
  const std::string first = Records({"first"});
  for (const size_t zeros : {1, 11, 12, 16, 511, 512, 200000}) {
    const Result result = Read(first + std::string(zeros, '\0'));
    EXPECT_THAT(result.records, ElementsAre("first"));
    EXPECT_EQ(result.end, RecordEnd::kTorn) << zeros;
    EXPECT_EQ(result.offset, first.size());
  }
  const Result result = Read(first + std::string(600, '\0') + "x");
  EXPECT_EQ(result.end, RecordEnd::kDamaged);
}

// A power cut loses whole sectors: those of the record that were written after the others.
TEST_F(RecordReaderTest, ZerosFromASectorOnAreATornRecord) {
  const std::string bytes = Records({"first", std::string(2000, 'x')});
  for (const size_t kept : {512, 1024, 1536}) {
    std::string torn = bytes;
    torn.replace(kept, std::string::npos, std::string(bytes.size() - kept, '\0'));
    EXPECT_EQ(Read(torn).end, RecordEnd::kTorn) << kept;
    torn.resize(bytes.size() + 5000, '\0');
    EXPECT_EQ(Read(torn).end, RecordEnd::kTorn) << kept;
  }
  std::string within = bytes;
  within.replace(within.size() - 100, 100, std::string(100, '\0'));
  EXPECT_EQ(Read(within).end, RecordEnd::kDamaged) << "no sector starts there";
}

TEST_F(RecordReaderTest, ALengthThatNobodyHasIsNotAllocated) {
  // A header whose checksum is right: what a hostile or unlucky file might hold.
  for (const uint64_t length : {~uint64_t{0}, ~uint64_t{0} - 15, uint64_t{1} << 62}) {
    std::string header(reinterpret_cast<const char*>(&length), sizeof length);
    const uint32_t crc = tensorboard::SlowMaskedCrc(header);
    header.append(reinterpret_cast<const char*>(&crc), sizeof crc);
    const Result result = Read(header + std::string(100, 'x'));
    EXPECT_EQ(result.end, RecordEnd::kTorn);
    EXPECT_EQ(result.offset, 0u);
  }
}

TEST_F(RecordReaderTest, MissingFileIsNotFound) {
  EXPECT_EQ(RecordReader::Open(directory_.File("none")).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(RecordReaderTest, ADirectoryHasNoRecords) {
  auto reader = RecordReader::Open(directory_.path());
  ASSERT_TRUE(reader.ok());
  std::string data;
  EXPECT_FALSE(reader->Next(&data).ok());
}

}  // namespace
}  // namespace ringmaster
