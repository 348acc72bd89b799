#include "coordinator/run_directory.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/temporary_directory.h"

namespace ringmaster {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class RunDirectoryTest : public ::testing::Test {
 protected:
  // "runs" is relative: the test moves to a directory of its own.
  RunDirectoryTest() : before_(fs::current_path()) { fs::current_path(directory_.path()); }
  ~RunDirectoryTest() override { fs::current_path(before_); }

  std::string Make() {
    const auto made = MakeRunDirectory(settings_, now_);
    EXPECT_TRUE(made.ok()) << made.status();
    return made.ok() ? *made : "";
  }

  const TemporaryDirectory directory_;
  const fs::path before_;
  const absl::Time now_ = absl::FromUnixSeconds(1700000000);  // 2023-11-14 22:13:20 UTC
  Settings settings_;
};

TEST_F(RunDirectoryTest, DefaultIsNamedByTimeAndLatestPointsAtIt) {
  ASSERT_TRUE(CheckOutputs(settings_).ok());
  EXPECT_FALSE(fs::exists("runs"));
  EXPECT_EQ(Make(), "runs/20231114-221320-mnist");
  EXPECT_EQ(fs::read_symlink("runs/latest"), "20231114-221320-mnist");
  settings_.name = "other";
  EXPECT_EQ(Make(), "runs/20231114-221320-other");
  EXPECT_EQ(fs::read_symlink("runs/latest"), "20231114-221320-other");
}

TEST_F(RunDirectoryTest, RunsOfOneSecondHaveDirectoriesOfTheirOwn) {
  Make();
  EXPECT_EQ(Make(), "runs/20231114-221320-mnist-2");
  EXPECT_EQ(Make(), "runs/20231114-221320-mnist-3");
  EXPECT_EQ(fs::read_symlink("runs/latest"), "20231114-221320-mnist-3");
}

// Somebody put a file there: the run goes on without the link.
TEST_F(RunDirectoryTest, LatestThatCannotBeReplacedIsNoError) {
  fs::create_directories("runs/latest/mine");
  EXPECT_EQ(Make(), "runs/20231114-221320-mnist");
  EXPECT_TRUE(fs::is_directory("runs/latest/mine"));
}

TEST_F(RunDirectoryTest, GivenDirectoryMayBeNewOrEmpty) {
  settings_.run_dir = "a/b/c";
  ASSERT_TRUE(CheckOutputs(settings_).ok());
  EXPECT_EQ(Make(), "a/b/c");
  EXPECT_TRUE(CheckOutputs(settings_).ok());
  EXPECT_EQ(Make(), "a/b/c");
  EXPECT_FALSE(fs::exists("runs"));
}

TEST_F(RunDirectoryTest, DirectoryInUseIsRefused) {
  settings_.run_dir = "mine";
  fs::create_directory("mine");
  std::ofstream("mine/file") << "keep";
  for (const absl::Status& status :
       {CheckOutputs(settings_), MakeRunDirectory(settings_, now_).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("--run-dir mine"));
  }
  settings_.run_dir = "mine/file";
  EXPECT_EQ(CheckOutputs(settings_).code(), absl::StatusCode::kInvalidArgument);
}

// Only --resume auto goes on with what is there.
TEST_F(RunDirectoryTest, DirectoryOfARun) {
  settings_.run_dir = "mine";
  fs::create_directories("mine/journal");
  settings_.resume = "auto";
  EXPECT_TRUE(CheckOutputs(settings_).ok());
  EXPECT_EQ(Make(), "mine");
  for (const char* resume : {"never", "some/checkpoint.safetensors"}) {
    settings_.resume = resume;
    const absl::Status status = CheckOutputs(settings_);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("mine holds a run"));
    EXPECT_THAT(std::string(status.message()), HasSubstr(resume));
  }
}

TEST_F(RunDirectoryTest, ReportMustBeWritable) {
  settings_.report = "report.json";
  EXPECT_TRUE(CheckOutputs(settings_).ok());
  std::ofstream("report.json") << "old";
  EXPECT_TRUE(CheckOutputs(settings_).ok());
  settings_.report = "missing/report.json";
  EXPECT_EQ(CheckOutputs(settings_).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(CheckOutputs(settings_).message()), HasSubstr("No such file"));
  // Replacing the file would replace the device.
  settings_.report = "/dev/null";
  EXPECT_THAT(std::string(CheckOutputs(settings_).message()), HasSubstr("not a regular file"));
  settings_.report = ".";
  EXPECT_EQ(CheckOutputs(settings_).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ringmaster
