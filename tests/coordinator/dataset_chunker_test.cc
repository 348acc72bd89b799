#include "coordinator/dataset_chunker.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

std::shared_ptr<const DatasetFiles> MakeFiles(const std::vector<size_t>& sizes) {
  DatasetFiles files;
  for (size_t i = 0; i < kDatasetFiles; ++i) {
    files[i].name = absl::StrCat("file-", i);
    files[i].sha256 = absl::StrCat("sha-", i);
    for (size_t at = 0; at < sizes[i]; ++at) files[i].bytes += static_cast<char>(at * (i + 1));
  }
  return std::make_shared<const DatasetFiles>(files);
}

std::vector<DatasetChunk> Cut(std::shared_ptr<const DatasetFiles> files, const std::string& have) {
  DatasetChunker chunker("run", "digest", have, std::move(files));
  std::vector<DatasetChunk> chunks;
  DatasetChunk chunk;
  while (chunker.Next(&chunk)) chunks.push_back(chunk);
  EXPECT_FALSE(chunker.Next(&chunk));
  return chunks;
}

TEST(DatasetChunkerTest, AllBytesInOrder) {
  const auto files = MakeFiles({3'000'000, 0, 1 << 19, 7});
  const std::vector<DatasetChunk> chunks = Cut(files, "another");
  std::string bytes;
  for (const DatasetChunk& chunk : chunks) {
    EXPECT_LT(chunk.ByteSizeLong(), size_t{1} << 20);
    bytes += chunk.data();
  }
  EXPECT_EQ(bytes, (*files)[0].bytes + (*files)[1].bytes + (*files)[2].bytes + (*files)[3].bytes);
  EXPECT_EQ(chunks[0].run_id(), "run");
  EXPECT_EQ(chunks[0].data_digest(), "digest");
  ASSERT_EQ(chunks[0].files_size(), kDatasetFiles);
  EXPECT_EQ(chunks[0].files(0).name(), "file-0");
  EXPECT_EQ(chunks[0].files(0).size(), 3'000'000u);
  EXPECT_EQ(chunks[0].files(3).sha256(), "sha-3");
  EXPECT_EQ(chunks[1].files_size(), 0);
}

TEST(DatasetChunkerTest, OnlyTheDescriptionForWhoeverHasTheFiles) {
  const std::vector<DatasetChunk> chunks = Cut(MakeFiles({10, 10, 10, 10}), "digest");
  ASSERT_EQ(chunks.size(), 1u);
  EXPECT_EQ(chunks[0].files_size(), kDatasetFiles);
  EXPECT_EQ(chunks[0].data(), "");
}

TEST(DatasetChunkerTest, EmptyFilesAreDescribedToo) {
  const std::vector<DatasetChunk> chunks = Cut(MakeFiles({0, 0, 0, 0}), "");
  ASSERT_EQ(chunks.size(), 1u);
  EXPECT_EQ(chunks[0].files_size(), kDatasetFiles);
}

}  // namespace
}  // namespace ringmaster
