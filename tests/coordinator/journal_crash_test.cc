// A process that keeps a journal is killed at each of its system calls, or a call fails: what it
// said was kept is there afterwards, in order. Skipped without strace, which does the killing.
//
// SIGKILL does not take what is in the kernel's memory, so that it does not show a missing sync:
// the order of the calls does (SyncsBeforeItPromises).

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/subprocess.h"
#include "coordinator/journal.h"
#include "tests/coordinator/event_reader.h"
#include "tests/coordinator/numbered_entries.h"
#include "tests/temporary_directory.h"

namespace ringmaster {
namespace {

constexpr int kEntriesALife = 10;
constexpr absl::Duration kPatience = absl::Seconds(60);

// Runs journal_child under strace with `options`.
Captured RunChild(const std::vector<std::string>& options, const std::string& directory) {
  ChildOptions child;
  child.argv = {"/usr/bin/env", "strace", "-o", directory + ".strace"};
  child.argv.insert(child.argv.end(), options.begin(), options.end());
  const auto program = ProgramBeside("journal_child");
  EXPECT_TRUE(program.ok()) << program.status();
  child.argv.insert(child.argv.end(), {*program, directory, std::to_string(kEntriesALife)});
  // Leaks cannot be looked for in a process that is traced.
  child.set_environment = {{"ASAN_OPTIONS", "detect_leaks=0"}};
  child.pipe_stdout = child.pipe_stderr = true;
  auto captured = RunAndCapture(child, kPatience);
  EXPECT_TRUE(captured.ok()) << captured.status();
  return captured.ok() ? *captured : Captured{};
}

// The largest number that a child said it keeps: "kept N", or "open N".
uint64_t LastKept(const std::string& out) {
  uint64_t last = 0;
  for (const absl::string_view line : absl::StrSplit(out, '\n')) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    uint64_t number = 0;
    if (words.size() == 2 && (words[0] == "kept" || words[0] == "open") &&
        absl::SimpleAtoi(words[1], &number)) {
      last = std::max(last, number);
    }
  }
  return last;
}

class JournalCrashTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ChildOptions probe;
    probe.argv = {"/usr/bin/env", "strace", "-o", "/dev/null", "/bin/true"};
    probe.pipe_stderr = true;
    const auto captured = RunAndCapture(probe, kPatience);
    if (!captured.ok() || !captured->status.ok()) {
      GTEST_SKIP() << "no strace here, or no right to trace: "
                   << (captured.ok() ? captured->error : captured.status().ToString());
    }
  }

  std::string Directory() const { return directory_.File("journal"); }

  // What a new process finds. Nothing: a mix, or a refusal.
  std::optional<uint64_t> Reopen() {
    std::vector<std::string> entries;
    std::string note;
    const auto journal = FileJournal::Open(Directory(), &entries, &note);
    EXPECT_TRUE(journal.ok()) << journal.status();
    return journal.ok() ? LastNumber(entries) : std::nullopt;
  }

  TemporaryDirectory directory_;
};

// One journal through all these deaths, so that each is also a recovery from the one before.
TEST_F(JournalCrashTest, KilledAtEverySystemCall) {
  const std::map<std::string, int> fewest = {{"pwrite64", 3}, {"fdatasync", 3}, {"write", 5},
                                             {"fsync", 2},    {"rename", 1},    {"unlink", 1},
                                             {"openat", 3},   {"ftruncate", 0}, {"close", 3}};
  uint64_t kept = 0;
  int deaths = 0;
  for (const auto& [call, wanted] : fewest) {
    int when = 1;
    for (;; ++when) {
      const std::string inject = absl::StrCat("inject=", call, ":signal=KILL:when=", when);
      const Captured captured = RunChild({"-e", inject}, Directory());
      kept = std::max(kept, LastKept(captured.out));
      const std::optional<uint64_t> found = Reopen();
      ASSERT_TRUE(found.has_value()) << inject << "\n" << captured.out;
      ASSERT_GE(*found, kept) << inject << "\n" << captured.out;
      kept = *found;
      if (captured.status.signal != SIGKILL) {
        ASSERT_TRUE(captured.status.ok()) << inject << captured.status.Describe() << captured.error;
        break;
      }
      ++deaths;
    }
    EXPECT_GT(when, wanted) << call;
  }
  RecordProperty("deaths", deaths);
  EXPECT_GT(deaths, 50);
}

// A call fails once; the child says so, tries again and goes on to the end.
TEST_F(JournalCrashTest, EveryCallFailsOnce) {
  const std::vector<std::string> failures = {"pwrite64:error=ENOSPC", "fdatasync:error=EIO",
                                             "write:error=ENOSPC", "fsync:error=EIO",
                                             "rename:error=ENOSPC"};
  for (const std::string& failure : failures) {
    // The first `write` is one of the child's own words, and the first syncs are those of Open,
    // which then fails: the next ones are to be survived.
    int survived = 0;
    for (int when = 1; when <= 12; ++when) {
      const std::string inject = absl::StrCat("inject=", failure, ":when=", when);
      const Captured captured = RunChild({"-e", inject}, Directory());
      if (captured.status.code == 3) continue;  // it could not speak
      const std::optional<uint64_t> found = Reopen();
      ASSERT_TRUE(found.has_value()) << inject << "\n" << captured.out;
      ASSERT_GE(*found, LastKept(captured.out)) << inject << "\n" << captured.out;
      if (captured.status.ok() && absl::StrContains(captured.out, "failed")) ++survived;
    }
    EXPECT_GT(survived, 0) << failure;
  }
}

// After a sync that failed, the file is never synced again: another one takes its place.
TEST_F(JournalCrashTest, AFailedSyncIsNotRepeatedOnThatFile) {
  const Captured captured = RunChild(
      {"-y", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=1"}, Directory());
  ASSERT_TRUE(captured.status.ok()) << captured.out;
  EXPECT_EQ(LastKept(captured.out), uint64_t{kEntriesALife});
  const std::string trace = tensorboard::ReadBytes(Directory() + ".strace");
  const std::vector<std::string> calls = absl::StrSplit(trace, '\n');
  ASSERT_GT(calls.size(), 2u);
  EXPECT_TRUE(absl::StrContains(calls[0], "00000001.log")) << trace;
  EXPECT_TRUE(absl::StrContains(calls[0], "EIO")) << trace;
  for (size_t i = 1; i < calls.size(); ++i) {
    EXPECT_FALSE(absl::StrContains(calls[i], "00000001.log")) << trace;
  }
}

// Data is synced before it is promised, a new segment before it gets its name, and the name before
// the former segment goes.
TEST_F(JournalCrashTest, SyncsBeforeItPromises) {
  const Captured captured =
      RunChild({"-y", "-e", "trace=pwrite64,fdatasync,write,fsync,rename,unlink"}, Directory());
  ASSERT_TRUE(captured.status.ok()) << captured.out;
  bool data = false;
  bool file = false;
  bool name = false;
  int promises = 0;
  int removals = 0;
  const std::vector<std::string> lines =
      absl::StrSplit(tensorboard::ReadBytes(Directory() + ".strace"), '\n');
  for (const std::string& line : lines) {
    const auto is = [&line](const char* call) { return absl::StartsWith(line, call); };
    if (is("write(1<") && absl::StrContains(line, "\"kept")) {
      ++promises;
      EXPECT_FALSE(data || file || name) << line;
    } else if (is("write(") && absl::StrContains(line, ".tmp>")) {
      file = true;
    } else if (is("pwrite64(")) {
      data = true;
    } else if (is("fdatasync(")) {
      data = false;
    } else if (is("rename(")) {
      EXPECT_FALSE(file) << line;
      name = true;
      data = false;  // it is in the new segment
    } else if (is("fsync(")) {
      (file ? file : name) = false;
    } else if (is("unlink(")) {
      ++removals;
      EXPECT_FALSE(file || name) << line;
    }
  }
  EXPECT_GT(promises, 3);
  EXPECT_GT(removals, 0);
}

}  // namespace
}  // namespace ringmaster
