#include "common/dataset.h"

#include <zlib.h>

#include <filesystem>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/temporary_directory.h"

namespace ringmaster {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kMnist[] = "data/mnist";
constexpr char kTrainImages[] = "train-images-idx3-ubyte";
constexpr char kTrainLabels[] = "train-labels-idx1-ubyte";
constexpr char kTestImages[] = "t10k-images-idx3-ubyte";
constexpr char kTestLabels[] = "t10k-labels-idx1-ubyte";

std::string BigEndian(uint32_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<char>(value >> shift));
  return bytes;
}

std::string Idx(const std::vector<uint32_t>& sizes, const std::string& values) {
  std::string bytes = BigEndian(0x0800 | static_cast<uint32_t>(sizes.size()));
  for (const uint32_t size : sizes) bytes += BigEndian(size);
  return bytes + values;
}

std::string Gzip(const std::string& bytes) {
  z_stream stream = {};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, 16 + MAX_WBITS, 9, Z_DEFAULT_STRATEGY), Z_OK);
  std::string packed(deflateBound(&stream, bytes.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

DatasetFile File(const std::string& name, const std::string& bytes) {
  return {name, bytes, Sha256Hex(bytes)};
}

// Five training and three test images of 2 x 3 pixels, three classes.
std::string TrainPixels() {
  std::string pixels(30, '\0');
  std::iota(pixels.begin(), pixels.end(), '\0');
  return pixels;
}

DatasetFiles SmallFiles() {
  return {File(kTrainImages, Idx({5, 2, 3}, TrainPixels())),
          File(kTrainLabels, Idx({5}, {0, 1, 2, 1, 0})),
          File(kTestImages, Idx({3, 2, 3}, std::string(18, '\xFF'))),
          File(kTestLabels, Idx({3}, {1, 0, 1}))};
}

void ExpectRefused(const DatasetFiles& files, const std::vector<std::string>& parts) {
  const absl::Status status = DecodeDataset(files).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  for (const std::string& part : parts) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
}

// Small files with one replaced, plain and compressed.
void ExpectRefused(int file, const std::string& bytes, const std::string& part) {
  DatasetFiles files = SmallFiles();
  const std::string name = files[file].name;
  files[file] = File(name, bytes);
  ExpectRefused(files, {name, part});
  files[file] = File(name + ".gz", Gzip(bytes));
  ExpectRefused(files, {name + ".gz", part});
}

TEST(MnistTest, IsWhatItIsKnownToBe) {
  const auto files = ReadDatasetFiles(kMnist);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ((*files)[0].name, "train-images-idx3-ubyte.gz");
  EXPECT_EQ((*files)[0].bytes.size(), 9'719'438u);
  EXPECT_EQ((*files)[3].sha256, "b91679a0acfe4ba0e50a2437a903084cba1f5f92592b016a25a7dfd00455798b");
  EXPECT_EQ(DatasetDigest(*files),
            "327c3173b268bca96668386a26e45c1cb567b741b175fda71102f136cb1c149f");
  const auto dataset = DecodeDataset(*files);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(dataset->train.num_samples, 60'000u);
  EXPECT_EQ(dataset->test.num_samples, 10'000u);
  EXPECT_EQ(dataset->rows, 28);
  EXPECT_EQ(dataset->columns, 28);
  EXPECT_EQ(dataset->pixels(), 784);
  EXPECT_EQ(dataset->num_classes, 10);
}

TEST(MnistTest, PixelsAndLabels) {
  const auto files = ReadDatasetFiles(kMnist);
  ASSERT_TRUE(files.ok()) << files.status();
  const auto dataset = DecodeDataset(*files);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  const std::vector<uint8_t>& images = dataset->train.images;
  const std::vector<uint8_t>& labels = dataset->train.labels;
  ASSERT_EQ(images.size(), 60'000u * 784);
  ASSERT_EQ(labels.size(), 60'000u);
  EXPECT_THAT(std::vector<int>(labels.begin(), labels.begin() + 8),
              ElementsAre(5, 0, 4, 1, 9, 2, 1, 3));
  EXPECT_EQ(dataset->test.labels[0], 7);
  EXPECT_EQ(std::accumulate(images.begin(), images.begin() + 784, 0), 27'525);
  const auto row = images.begin() + 5 * 28 + 12;  // the top of the first digit, a five
  EXPECT_THAT(std::vector<int>(row, row + 6), ElementsAre(3, 18, 18, 18, 126, 136));
  EXPECT_EQ(std::accumulate(images.begin(), images.end(), uint64_t{0}), 1'567'298'545u);
  std::vector<int> samples(10);
  for (const uint8_t label : labels) ++samples[label];
  EXPECT_THAT(samples, ElementsAre(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949));
}

TEST(DecodeTest, SizeAndClassesComeFromTheFiles) {
  const auto dataset = DecodeDataset(SmallFiles());
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(dataset->rows, 2);
  EXPECT_EQ(dataset->columns, 3);
  EXPECT_EQ(dataset->num_classes, 3);
  EXPECT_EQ(dataset->train.num_samples, 5u);
  EXPECT_EQ(dataset->test.num_samples, 3u);
  const std::string pixels = TrainPixels();
  EXPECT_EQ(dataset->train.images, std::vector<uint8_t>(pixels.begin(), pixels.end()));
  EXPECT_THAT(dataset->test.labels, ElementsAre(1, 0, 1));
}

TEST(DecodeTest, GzipOfOneOrSeveralMembers) {
  DatasetFiles files = SmallFiles();
  const std::string bytes = files[0].bytes;
  for (const std::string& packed :
       {Gzip(bytes), Gzip(bytes.substr(0, 7)) + Gzip("") + Gzip(bytes.substr(7)),
        Gzip(bytes) + Gzip("")}) {
    files[0] = File(absl::StrCat(kTrainImages, ".gz"), packed);
    const auto dataset = DecodeDataset(files);
    ASSERT_TRUE(dataset.ok()) << dataset.status();
    EXPECT_EQ(dataset->train.images.back(), 29);
  }
}

TEST(DecodeTest, WrongMagic) {
  std::string bytes = SmallFiles()[0].bytes;
  bytes[0] = 'P';
  ExpectRefused(0, bytes, "is not an IDX file: it begins with 0x50000803, wanted 0x00000803");
}

TEST(DecodeTest, WrongType) {
  std::string bytes = SmallFiles()[1].bytes;
  bytes[2] = 0x0D;  // float
  ExpectRefused(1, bytes, "has elements of IDX type 0x0d, wanted 0x08");
}

TEST(DecodeTest, WrongDimensions) {
  ExpectRefused(0, SmallFiles()[1].bytes, "has 1 dimensions, wanted 3 (images");
  ExpectRefused(3, SmallFiles()[2].bytes, "has 3 dimensions, wanted 1 (labels");
}

TEST(DecodeTest, GzipWithoutTheName) {
  DatasetFiles files = SmallFiles();
  files[0] = File(kTrainImages, Gzip(files[0].bytes));
  ExpectRefused(files, {kTrainImages, "name it train-images-idx3-ubyte.gz"});
}

TEST(DecodeTest, Truncated) {
  const std::string bytes = SmallFiles()[2].bytes;
  for (const size_t left : {0, 3, 4, 15}) {
    ExpectRefused(
        2, bytes.substr(0, left),
        absl::StrCat("truncated: it ends after ", left, " of the 16 bytes of its header"));
  }
  for (const size_t left : {size_t{16}, bytes.size() - 1}) {
    ExpectRefused(2, bytes.substr(0, left), "truncated: it holds fewer than the 18 bytes");
  }
}

TEST(DecodeTest, TrailingBytes) {
  DatasetFiles files = SmallFiles();
  files[3] = File(kTestLabels, files[3].bytes + "x");
  ExpectRefused(files, {kTestLabels, "has trailing bytes after the 3 bytes"});
}

TEST(DecodeTest, GzipThatExpandsPastItsPromise) {
  DatasetFiles files = SmallFiles();
  const std::string bytes = files[3].bytes + std::string(64 << 20, '\0');
  files[3] = File(absl::StrCat(kTestLabels, ".gz"), Gzip(bytes));
  ExpectRefused(files, {"t10k-labels-idx1-ubyte.gz", "expands past the 3 bytes"});
}

TEST(DecodeTest, CorruptGzip) {
  DatasetFiles files = SmallFiles();
  const std::string name = absl::StrCat(kTrainImages, ".gz");
  const std::string packed = Gzip(files[0].bytes);
  std::string bad_sum = packed;
  bad_sum[packed.size() - 8] ^= 1;
  const std::pair<std::string, std::string> cases[] = {
      {"", "cut off"},
      {packed.substr(0, packed.size() - 1), "cut off"},
      {packed.substr(0, packed.size() / 2), "cut off"},
      {bad_sum, "incorrect data check"},
      {packed + "junk", "something that is not gzip comes after it"},
      {files[0].bytes, "incorrect header check"}};
  for (const auto& [bytes, message] : cases) {
    files[0] = File(name, bytes);
    ExpectRefused(files, {name, message});
  }
}

TEST(DecodeTest, CountsThatDiffer) {
  ExpectRefused(1, Idx({4}, {0, 1, 2, 1}), "4");
  DatasetFiles files = SmallFiles();
  files[1] = File(kTrainLabels, Idx({4}, {0, 1, 2, 1}));
  ExpectRefused(files, {kTrainImages, "holds 5 images", kTrainLabels, "holds 4 labels"});
}

TEST(DecodeTest, NoSamplesOrNoPixels) {
  ExpectRefused(0, Idx({0, 2, 3}, ""), "holds no samples");
  ExpectRefused(3, Idx({0}, ""), "holds no samples");
  ExpectRefused(0, Idx({5, 0, 3}, ""), "holds images of 0 x 3 pixels");
  ExpectRefused(2, Idx({3, 2, 0}, ""), "holds images of 2 x 0 pixels");
}

TEST(DecodeTest, ImagesOfDifferentSizes) {
  DatasetFiles files = SmallFiles();
  files[2] = File(kTestImages, Idx({3, 3, 2}, std::string(18, 'x')));
  ExpectRefused(files, {kTestImages, "3 x 2", kTrainImages, "2 x 3"});
}

TEST(DecodeTest, LabelOutOfRange) {
  ExpectRefused(3, Idx({3}, {1, 0, 3}),
                "label 3 of sample 2 is out of range: the training labels are 0 to 2");
}

TEST(DecodeTest, PromisesOutOfRange) {
  const uint32_t most = 0xFFFFFFFF;
  ExpectRefused(0, Idx({most, most, most}, ""), "promises more than 4294967296 bytes");
  ExpectRefused(0, Idx({2, 1 << 16, 1 << 16}, ""), "promises more than 4294967296 bytes");
  ExpectRefused(1, Idx({most}, ""), "promises 4294967295 samples; the most is 2147483648");
  ExpectRefused(2, Idx({1, 1 << 11, 1 << 10}, ""), "the most is 1048576 pixels");
  // Allowed, but not believed: no memory is taken for what a few bytes cannot hold.
  ExpectRefused(0, Idx({5'000'000, 28, 28}, "few"), "holds fewer than the 3920000000 bytes");
}

class ReadTest : public ::testing::Test {
 protected:
  void Write(const std::string& name, const std::string& bytes) {
    ASSERT_EQ(WriteFileAtomically(directory_.File(name), bytes), absl::OkStatus());
  }
  void WriteSmall() {
    for (const DatasetFile& file : SmallFiles()) Write(file.name, file.bytes);
  }
  std::string Sums() const {
    std::string lines;
    for (const DatasetFile& file : SmallFiles()) {
      absl::StrAppend(&lines, file.sha256, "  ", file.name, "\n");
    }
    return lines;
  }
  void ExpectError(absl::StatusCode code, const std::vector<std::string>& parts) {
    const absl::Status status = ReadDatasetFiles(directory_.path()).status();
    EXPECT_EQ(status.code(), code) << status;
    for (const std::string& part : parts) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(part));
    }
  }

  TemporaryDirectory directory_;
};

TEST_F(ReadTest, PlainFilesWithoutSums) {
  WriteSmall();
  const auto files = ReadDatasetFiles(directory_.path());
  ASSERT_TRUE(files.ok()) << files.status();
  for (int i = 0; i < kDatasetFiles; ++i) {
    EXPECT_EQ((*files)[i].name, kDatasetFileNames[i]);
    EXPECT_EQ((*files)[i].bytes, SmallFiles()[i].bytes);
    EXPECT_EQ((*files)[i].sha256, SmallFiles()[i].sha256);
  }
  EXPECT_EQ(DatasetDigest(*files), Sha256Hex(Sums()));
}

TEST_F(ReadTest, EachFileMayBeCompressed) {
  WriteSmall();
  std::filesystem::remove(directory_.File(kTestImages));
  Write(absl::StrCat(kTestImages, ".gz"), Gzip(SmallFiles()[2].bytes));
  const auto files = ReadDatasetFiles(directory_.path());
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ((*files)[2].name, "t10k-images-idx3-ubyte.gz");
  EXPECT_TRUE(DecodeDataset(*files).ok());
}

TEST_F(ReadTest, MissingFile) {
  WriteSmall();
  std::filesystem::remove(directory_.File(kTrainLabels));
  ExpectError(absl::StatusCode::kNotFound, {kTrainLabels, directory_.path(), "--data-dir"});
}

TEST(ReadFilesTest, MissingDirectory) {
  const absl::Status status = ReadDatasetFiles("/no/such/place").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("/no/such/place"), HasSubstr("four")));
}

TEST_F(ReadTest, SumsThatMatch) {
  WriteSmall();
  Write("SHA256SUMS", absl::StrCat("# a comment\n\n", Sums()));
  EXPECT_TRUE(ReadDatasetFiles(directory_.path()).ok());
}

TEST_F(ReadTest, SumThatDoesNotMatch) {
  WriteSmall();
  Write("SHA256SUMS", Sums());
  Write(kTestLabels, SmallFiles()[3].bytes + "x");
  ExpectError(absl::StatusCode::kDataLoss,
              {kTestLabels, Sha256Hex(SmallFiles()[3].bytes + "x"), SmallFiles()[3].sha256});
}

TEST_F(ReadTest, SumThatIsMissing) {
  WriteSmall();
  const std::string sums = Sums();
  Write("SHA256SUMS", sums.substr(0, sums.find('\n') + 1));
  ExpectError(absl::StatusCode::kDataLoss, {kTrainLabels, "does not list it"});
}

TEST_F(ReadTest, SumsThatAreNone) {
  WriteSmall();
  for (const std::string& line :
       {std::string("what is this"), std::string(64, 'a'), std::string(64, 'g') + "  name",
        std::string(64, 'a') + "--name"}) {
    Write("SHA256SUMS", Sums() + line);
    ExpectError(absl::StatusCode::kInvalidArgument, {"SHA256SUMS", "line 5"});
  }
}

}  // namespace
}  // namespace ringmaster
