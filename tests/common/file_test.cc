#include "common/file.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/temporary_directory.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Files of this process may not grow past `bytes`, as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  rlimit before_ = {};
};

TEST(FileTest, RoundTrip) {
  const TemporaryDirectory directory;
  const std::string path = directory.File("file");
  for (const std::string& bytes : {std::string("one\0two", 7), std::string(), std::string("three"),
                                   std::string((1 << 20) + 17, 'x')}) {
    ASSERT_EQ(WriteFileAtomically(path, bytes), absl::OkStatus());
    const auto read = ReadFile(path);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, bytes);
  }
  EXPECT_THAT(directory.List(), ElementsAre("file"));
}

TEST(FileTest, ReadsWhatHasNoSize) {
  const auto read = ReadFile("/proc/self/status");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_THAT(*read, HasSubstr("VmSize"));
}

TEST(FileTest, BoundsWhatItReads) {
  const TemporaryDirectory directory;
  const std::string path = directory.File("file");
  ASSERT_EQ(WriteFileAtomically(path, "12345678"), absl::OkStatus());
  EXPECT_TRUE(ReadFile(path, 8).ok());
  const absl::Status status = ReadFile(path, 7).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  EXPECT_EQ(ReadFile("/dev/zero", 1 << 16).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(FileTest, MissingFileIsNotFound) {
  const absl::Status status = ReadFile("/no/such/file").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/no/such/file"));
}

TEST(FileTest, DirectoryIsNoFile) {
  const TemporaryDirectory directory;
  EXPECT_EQ(ReadFile(directory.path()).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(FileTest, MissingDirectoryIsNotFound) {
  const TemporaryDirectory directory;
  const absl::Status status = WriteFileAtomically(directory.File("missing/file"), "new");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("missing/file"));
  EXPECT_THAT(directory.List(), IsEmpty());
}

TEST(FileTest, FullDiskLeavesTheOldFile) {
  const TemporaryDirectory directory;
  const std::string path = directory.File("file");
  ASSERT_EQ(WriteFileAtomically(path, "old"), absl::OkStatus());
  absl::Status status;
  {
    const FileSizeLimit limit(4096);
    status = WriteFileAtomically(path, std::string(10000, 'n'));
  }
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  EXPECT_EQ(ReadFile(path).value(), "old");
  EXPECT_THAT(directory.List(), ElementsAre("file"));
}

TEST(FileTest, FailedRenameLeavesNothingBehind) {
  const TemporaryDirectory directory;
  const std::string path = directory.File("taken");
  std::filesystem::create_directory(path);
  std::filesystem::create_directory(path + "/inside");
  EXPECT_FALSE(WriteFileAtomically(path, "new").ok());
  EXPECT_THAT(directory.List(), ElementsAre("taken"));
}

TEST(FileTest, LeftoversOfADeadProcessAreNoObstacle) {
  const TemporaryDirectory directory;
  const std::string path = directory.File("file");
  const std::string leftover = path + "." + std::to_string(getpid()) + "-0.tmp";
  ASSERT_EQ(WriteFileAtomically(leftover, "leftover"), absl::OkStatus());
  EXPECT_EQ(WriteFileAtomically(path, "new"), absl::OkStatus());
  EXPECT_EQ(ReadFile(path).value(), "new");
  EXPECT_EQ(ReadFile(leftover).value(), "leftover");
}

TEST(FileTest, HonoursTheUsersMask) {
  const TemporaryDirectory directory;
  const mode_t before = umask(027);
  const absl::Status status = WriteFileAtomically(directory.File("file"), "x");
  umask(before);
  ASSERT_EQ(status, absl::OkStatus());
  struct stat info;
  ASSERT_EQ(stat(directory.File("file").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, mode_t{0640});
}

}  // namespace
}  // namespace ringmaster
