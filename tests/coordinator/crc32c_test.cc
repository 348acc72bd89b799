#include "coordinator/crc32c.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace ringmaster {
namespace {

// One suite for every implementation.
class Crc32cTest : public ::testing::TestWithParam<Crc32cImplementation> {
 protected:
  uint32_t Crc(std::string_view data) const { return GetParam().crc(data); }
};

TEST_P(Crc32cTest, NoData) { EXPECT_EQ(Crc(""), 0u); }

TEST_P(Crc32cTest, CheckValueOfTheCatalogue) { EXPECT_EQ(Crc("123456789"), 0xE3069283u); }

// RFC 3720, appendix B.4 (the RFC prints the bytes in the order they are sent: low byte first).
TEST_P(Crc32cTest, Rfc3720) {
  EXPECT_EQ(Crc(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(Crc(std::string(32, '\xff')), 0x62A8AB43u);
  std::string ascending;
  for (char c = 0; c < 32; ++c) ascending += c;
  EXPECT_EQ(Crc(ascending), 0x46DD794Eu);
  EXPECT_EQ(Crc(std::string(ascending.rbegin(), ascending.rend())), 0x113FDB5Cu);
  const unsigned char iscsi_read[48] = {
      0x01, 0xc0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
      0x00, 0x00, 0x00, 0x00, 0x14, 0x00, 0x00, 0x00, 0x00, 0x00, 0x04, 0x00,
      0x00, 0x00, 0x00, 0x14, 0x00, 0x00, 0x00, 0x18, 0x28, 0x00, 0x00, 0x00,
      0x00, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
  };
  EXPECT_EQ(Crc({reinterpret_cast<const char*>(iscsi_read), sizeof iscsi_read}), 0xD9963A56u);
}

TEST_P(Crc32cTest, TensorFlowsTestString) {
  EXPECT_EQ(Crc("\x1a\x11"
                "CRC test, one two"),
            0xF2D95A88u);
}

// All lengths and alignments around the word size, against the table.
TEST_P(Crc32cTest, AgreesWithTheTableAtEveryLengthAndAlignment) {
  std::string data;
  for (int i = 0; i < 100; ++i) data += static_cast<char>(i * 37 + 11);
  const Crc32cImplementation table = Crc32cImplementations().front();
  for (size_t start = 0; start < 9; ++start) {
    for (size_t length = 0; length <= data.size() - start; ++length) {
      const std::string_view part = std::string_view(data).substr(start, length);
      ASSERT_EQ(Crc(part), table.crc(part)) << start << " " << length;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Crc32cTest, ::testing::ValuesIn(Crc32cImplementations()),
                         [](const auto& info) {
                           return std::string(info.param.name) == "table" ? "Table" : "Sse42";
                         });

TEST(MaskedCrc32cTest, TensorFlowsTestString) {
  EXPECT_EQ(MaskedCrc32c("\x1a\x11"
                         "CRC test, one two"),
            0x5794D08Au);
}

}  // namespace
}  // namespace ringmaster
