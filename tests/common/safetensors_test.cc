#include "common/safetensors.h"

#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

// A file of this header and data, not padded: readers must not ask for that.
std::string FileOf(const std::string& header, const std::string& data = "") {
  const uint64_t length = header.size();
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + header + data;
}

std::string OneTensor(const std::string& dtype, const std::string& shape,
                      const std::string& offsets) {
  return absl::StrCat("{\"t\":{\"dtype\":", dtype, ",\"shape\":", shape,
                      ",\"data_offsets\":", offsets, "}}");
}

void ExpectRefused(const std::string& bytes, const std::string& part) {
  const absl::Status status = DecodeSafetensors(bytes).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(part));
}

TEST(SafetensorsTest, RoundTrip) {
  const std::vector<float> kernel = {1, -2, 3.5, 0, 1e-40f, 1e38f};
  const std::vector<float> bias = {0.25f};
  const std::string bytes =
      EncodeSafetensors({{"z/kernel", {2, 3}, kernel}, {"a/bias", {1}, bias}, {"none", {0}, {}}});
  const auto file = DecodeSafetensors(bytes);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->tensors.size(), 3u);
  EXPECT_EQ(file->tensors[0].name, "z/kernel");
  EXPECT_THAT(file->tensors[0].shape, ElementsAre(2, 3));
  EXPECT_EQ(file->tensors[0].values, kernel);
  EXPECT_EQ(file->tensors[1].name, "a/bias");
  EXPECT_EQ(file->tensors[1].values, bias);
  EXPECT_THAT(file->tensors[2].values, IsEmpty());
}

TEST(SafetensorsTest, GoldenBytes) {
  const std::vector<float> values = {1.0f, -2.0f};
  const std::string header = R"({"b":{"data_offsets":[0,8],"dtype":"F32","shape":[2]}})"
                             "  ";
  EXPECT_EQ(EncodeSafetensors({{"b", {2}, values}}),
            FileOf(header, std::string("\0\0\x80\x3F\0\0\0\xC0", 8)));
  EXPECT_EQ(header.size() % 8, 0u);
}

TEST(SafetensorsTest, NoTensors) {
  const auto file = DecodeSafetensors(EncodeSafetensors({}));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->tensors, IsEmpty());
}

TEST(SafetensorsTest, MetadataRoundTrip) {
  const SafetensorsMetadata metadata = {{"a", ""}, {"quote\"", "\xC3\xA9\n\\"}};
  const std::vector<float> values = {1};
  const auto file = DecodeSafetensors(EncodeSafetensors({{"t", {1}, values}}, metadata));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->metadata, metadata);
  EXPECT_EQ(file->tensors.size(), 1u);
  EXPECT_THAT(DecodeSafetensors(EncodeSafetensors({}))->metadata, IsEmpty());
}

TEST(SafetensorsTest, MetadataMustBeStrings) {
  ExpectRefused(FileOf(R"({"__metadata__":1})"), "__metadata__ is not an object of strings");
  ExpectRefused(FileOf(R"({"__metadata__":["a"]})"), "__metadata__ is not an object of strings");
  ExpectRefused(FileOf(R"({"__metadata__":{"a":"b","c":1}})"), "__metadata__ c is not a string");
  ExpectRefused(FileOf(R"({"__metadata__":{"a":"b","a":"c"}})"), "names a twice");
  ExpectRefused(FileOf(R"({"__metadata__":{},"__metadata__":{}})"), "names __metadata__ twice");
}

TEST(SafetensorsTest, MetadataAndScalarsAreRead) {
  const auto file = DecodeSafetensors(FileOf(
      R"({"__metadata__":{"format":"pt"},"t":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}  )",
      std::string("\0\0\x80\x3F", 4)));
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->tensors.size(), 1u);
  EXPECT_THAT(file->tensors[0].shape, IsEmpty());
  EXPECT_THAT(file->tensors[0].values, ElementsAre(1.0f));
  EXPECT_THAT(file->metadata, ElementsAre(Pair("format", "pt")));
}

TEST(SafetensorsTest, EachTruncationIsRefused) {
  const std::vector<float> values = {1, 2, 3};
  const std::string bytes = EncodeSafetensors({{"t", {3}, values}});
  for (size_t left = 0; left < bytes.size(); ++left) {
    EXPECT_EQ(DecodeSafetensors(bytes.substr(0, left)).status().code(),
              absl::StatusCode::kInvalidArgument)
        << left;
  }
}

TEST(SafetensorsTest, HeaderLengthOutOfBounds) {
  ExpectRefused("short", "5 bytes, too few");
  ExpectRefused(std::string(8, '\xFF') + "{}", "header of 18446744073709551615 bytes");
  ExpectRefused(FileOf("{}").substr(0, 9), "header of 2 bytes, but has 1 more");
  ExpectRefused(FileOf("{}" + std::string(1 << 20, ' ')), "the most is 1048576");
}

TEST(SafetensorsTest, HeaderThatIsNoJsonObject) {
  for (const std::string& header :
       {std::string(), std::string("[]"), std::string("{\"t\":"), std::string("{} {}"),
        std::string("{\"\xFF\":1}"), std::string(1 << 20, '[')}) {
    ExpectRefused(FileOf(header), "not a JSON object");
  }
}

TEST(SafetensorsTest, EntriesThatAreNone) {
  for (const std::string& header :
       {std::string(R"({"t":1})"), std::string(R"({"t":{}})"), OneTensor("1", "[1]", "[0,4]"),
        OneTensor("\"F32\"", "1", "[0,4]"), OneTensor("\"F32\"", "[-1]", "[0,4]"),
        OneTensor("\"F32\"", "[1.0]", "[0,4]"), OneTensor("\"F32\"", "[1]", "[0]"),
        OneTensor("\"F32\"", "[1]", "[0,4,8]"), OneTensor("\"F32\"", "[1]", "[0,-4]"),
        OneTensor("\"F32\"", "[1]", "{}")}) {
    ExpectRefused(FileOf(header, "data"), "t has no proper dtype, shape and data_offsets");
  }
}

TEST(SafetensorsTest, OtherTypesAreRefusedByName) {
  ExpectRefused(FileOf(OneTensor("\"BF16\"", "[2]", "[0,4]"), "data"),
                "t has dtype BF16, wanted F32");
}

TEST(SafetensorsTest, OffsetsMustFitShapeAndData) {
  ExpectRefused(FileOf(OneTensor("\"F32\"", "[1]", "[4,0]"), "data"), "wanted 4 bytes");
  ExpectRefused(FileOf(OneTensor("\"F32\"", "[1]", "[0,8]"), "data"), "wanted 4 bytes among 4");
  ExpectRefused(FileOf(OneTensor("\"F32\"", "[2]", "[0,4]"), "datadata"), "wanted 8 bytes");
  ExpectRefused(FileOf(OneTensor("\"F32\"", "[2]", "[0,8]"), "data"), "only 4 bytes of data");
  // Sizes whose product overflows, to zero or to something harmless.
  ExpectRefused(FileOf(OneTensor("\"F32\"", "[4294967296,4294967296]", "[0,0]"), ""),
                "only 0 bytes of data");
  ExpectRefused(FileOf(OneTensor("\"F32\"", "[4611686018427387905]", "[0,4]"), "data"),
                "only 4 bytes of data");
  ExpectRefused(FileOf(OneTensor("\"F32\"", "[0,18446744073709551615]", "[0,0]")), "beyond 2^63");
}

TEST(SafetensorsTest, TensorsMustCoverTheData) {
  const auto two = [](const std::string& first, const std::string& second) {
    return absl::StrCat(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":)", first,
                        R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":)", second, "}}");
  };
  EXPECT_TRUE(DecodeSafetensors(FileOf(two("[4,8]", "[0,4]"), "datadata")).ok());
  ExpectRefused(FileOf(two("[0,4]", "[0,4]"), "data"), "overlap or leave a gap");
  ExpectRefused(FileOf(two("[0,4]", "[2,6]"), "datada"), "overlap or leave a gap");
  ExpectRefused(FileOf(two("[0,4]", "[8,12]"), "datadatadata"), "overlap or leave a gap");
  ExpectRefused(FileOf(two("[4,8]", "[8,12]"), "datadatadata"), "overlap or leave a gap");
  ExpectRefused(FileOf(two("[0,4]", "[4,8]"), "datadata+"), "cover 8 of 9 bytes");
}

TEST(SafetensorsTest, NameGivenTwice) {
  const std::string entry = R"("t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  ExpectRefused(FileOf(absl::StrCat("{", entry, ",", entry, "}"), "data"), "names t twice");
  ExpectRefused(
      FileOf(R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"shape":[1]}})", "data"),
      "names shape twice");
}

}  // namespace
}  // namespace ringmaster
