// Kills a process that writes checkpoints at each of its system calls that touch the disk, and
// looks at what is left.
#include <algorithm>
#include <csignal>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "common/subprocess.h"
#include "coordinator/checkpoint_store.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/checkpoints.h"
#include "tests/temporary_directory.h"

namespace ringmaster {
namespace {

// Enough that the oldest are deleted, too.
constexpr int kCheckpoints = 5;

ChildOptions Command(std::vector<std::string> argv) {
  ChildOptions options;
  options.argv = std::move(argv);
  options.pipe_stdout = true;
  options.pipe_stderr = true;
  return options;
}

// Whether strace is there and may trace.
bool CanTrace() {
  const auto captured = RunAndCapture(
      Command({"/usr/bin/strace", "-f", "-o", "/dev/null", "/bin/true"}), absl::Seconds(30));
  return captured.ok() && captured->status.ok();
}

// Runs the writer and kills it at the `when`-th `call` of its writing thread. Returns false when it
// got to its end before. `*done` are the checkpoints it told to be done.
bool RunUntil(const std::string& call, int when, const std::string& directory,
              std::set<uint64_t>* done) {
  const auto captured = RunAndCapture(
      Command({"/usr/bin/strace", "-f", "-o", "/dev/null", "-e", absl::StrCat("trace=", call), "-e",
               absl::StrCat("inject=", call, ":signal=KILL:when=", when),
               ProgramBeside("checkpoint_writer").value(), directory, absl::StrCat(kCheckpoints)}),
      absl::Seconds(60));
  EXPECT_TRUE(captured.ok()) << captured.status();
  if (!captured.ok()) return false;
  for (const auto& line : absl::StrSplit(captured->out, '\n', absl::SkipEmpty())) {
    uint64_t position = 0;
    if (absl::SimpleAtoi(line, &position)) done->insert(position);
  }
  if (captured->status.ok()) return false;
  EXPECT_EQ(captured->status.signal, SIGKILL) << captured->status.Describe() << captured->error;
  return captured->status.signal == SIGKILL;
}

// What a new process finds: the newest checkpoint that was done, or one that was all but done; each
// file whole.
void ExpectOldOrNew(const std::string& directory, const std::set<uint64_t>& done) {
  const uint64_t told = done.empty() ? 0 : *done.rbegin();
  const auto store = CheckpointStore::Open({directory});
  ASSERT_TRUE(store.ok()) << store.status();
  for (const CheckpointFile& file : (*store)->files()) EXPECT_TRUE(file.verified.ok());
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    EXPECT_FALSE(absl::EndsWith(entry.path().string(), ".tmp")) << entry.path();
  }
  std::vector<std::string> notes;
  const auto loaded = (*store)->LoadNewest(nullptr, &notes);
  EXPECT_THAT(notes, testing::IsEmpty());
  if (!loaded.ok()) {
    EXPECT_EQ(loaded.status().code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(told, 0u);
    return;
  }
  EXPECT_EQ(loaded->checkpoint, CheckpointAt(loaded->checkpoint.position));
  EXPECT_GE(loaded->checkpoint.position, told);
  EXPECT_LE(loaded->checkpoint.position, told + 1);
  EXPECT_GE((*store)->files().size(), std::min<size_t>(3, told));
}

// Calls of the writing thread alone: strace counts them by thread.
struct Crash {
  const char* name;
  const char* calls;  // a set of system calls in strace's terms
  int at_least;       // how often they are made
};

class CheckpointCrashTest : public ::testing::TestWithParam<Crash> {};

TEST_P(CheckpointCrashTest, OldOrNew) {
  if (!CanTrace()) GTEST_SKIP() << "strace (package strace) is missing or may not trace";
  const std::string call = GetParam().calls;
  int crashes = 0;
  for (int when = 1;; ++when) {
    SCOPED_TRACE(absl::StrCat(call, " ", when));
    TemporaryDirectory directory;
    const std::string path = directory.File("checkpoints");
    std::filesystem::create_directory(path);
    std::set<uint64_t> done;
    const bool killed = RunUntil(call, when, path, &done);
    ExpectOldOrNew(path, done);
    if (!killed || HasFailure()) break;
    ++crashes;
  }
  EXPECT_GE(crashes, GetParam().at_least);
  RecordProperty("crashes", crashes);
}

// Of each checkpoint: its bytes and its line on standard output; file and directory.
INSTANTIATE_TEST_SUITE_P(SystemCalls, CheckpointCrashTest,
                         ::testing::Values(Crash{"write", "write", 2 * kCheckpoints},
                                           Crash{"fsync", "fsync", 2 * kCheckpoints},
                                           Crash{"rename", "/^rename", kCheckpoints},
                                           Crash{"unlink", "/^unlink", kCheckpoints - 3}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace ringmaster
