#include "coordinator/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/record.h"
#include "tests/coordinator/event_reader.h"
#include "tests/coordinator/numbered_entries.h"
#include "tests/temporary_directory.h"

namespace ringmaster {
namespace {

using tensorboard::ReadBytes;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

class JournalTest : public ::testing::Test {
 protected:
  absl::Status Open() {
    journal_.reset();
    auto journal = FileJournal::Open(Directory(), &entries_, &note_);
    if (journal.ok()) journal_ = *std::move(journal);
    return journal.status();
  }
  void Keep(const std::vector<std::string>& entries) {
    for (const std::string& entry : entries) journal_->Append(entry);
    ASSERT_EQ(journal_->Commit(), absl::OkStatus());
  }
  std::string Directory() const { return directory_.File("run/journal"); }
  std::string Segment(int number) const {
    return Directory() + "/0000000" + std::to_string(number) + ".log";
  }
  std::vector<std::string> Files() const {
    std::vector<std::string> names;
    for (const auto& file : std::filesystem::directory_iterator(Directory())) {
      names.push_back(file.path().filename().string());
    }
    return names;
  }
  void Write(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  }

  TemporaryDirectory directory_;
  std::unique_ptr<FileJournal> journal_;
  std::vector<std::string> entries_;
  std::string note_;
};

TEST_F(JournalTest, ANewOneHasAnEmptySnapshot) {
  ASSERT_EQ(Open(), absl::OkStatus());
  EXPECT_THAT(entries_, ElementsAre(""));
  EXPECT_EQ(note_, "");
  EXPECT_FALSE(journal_->pending());
  EXPECT_THAT(Files(), ElementsAre("00000001.log"));
}

TEST_F(JournalTest, GivesBackWhatWasCommitted) {
  ASSERT_EQ(Open(), absl::OkStatus());
  Keep({"one", std::string("t\0o", 3)});
  Keep({""});
  ASSERT_EQ(Open(), absl::OkStatus());
  EXPECT_THAT(entries_, ElementsAre("", "one", std::string("t\0o", 3), ""));
  Keep({"four"});
  ASSERT_EQ(Open(), absl::OkStatus());
  EXPECT_THAT(entries_, ElementsAre("", "one", std::string("t\0o", 3), "", "four"));
  EXPECT_EQ(note_, "");
}

TEST_F(JournalTest, WhatIsPendingIsOnlyInMemory) {
  ASSERT_EQ(Open(), absl::OkStatus());
  const uint64_t before = journal_->size();
  journal_->Append("one");
  EXPECT_TRUE(journal_->pending());
  EXPECT_EQ(journal_->size(), before);
  EXPECT_EQ(std::filesystem::file_size(Segment(1)), before);
  ASSERT_EQ(journal_->Commit(), absl::OkStatus());
  EXPECT_FALSE(journal_->pending());
  EXPECT_EQ(journal_->size(), before + 20 + 3);
  EXPECT_EQ(std::filesystem::file_size(Segment(1)), journal_->size());
}

// docs/journal.md
TEST_F(JournalTest, TheBytesOfASegment) {
  ASSERT_EQ(Open(), absl::OkStatus());
  Keep({"one"});
  const std::string bytes = ReadBytes(Segment(1));
  std::string link(4, '\0');
  std::string wanted;
  for (const std::string data : {"ringmaster journal 1 1", "", "one"}) {
    AppendRecord(link + data, &wanted);
    link = wanted.substr(wanted.size() - 4);
  }
  EXPECT_EQ(bytes, wanted);
}

TEST_F(JournalTest, ASnapshotReplacesWhatCameBefore) {
  ASSERT_EQ(Open(), absl::OkStatus());
  Keep({"one"});
  journal_->Append("two");
  ASSERT_EQ(journal_->Rotate("one and two"), absl::OkStatus());
  EXPECT_FALSE(journal_->pending());
  EXPECT_THAT(Files(), ElementsAre("00000002.log"));
  Keep({"three"});
  ASSERT_EQ(Open(), absl::OkStatus());
  EXPECT_THAT(entries_, ElementsAre("one and two", "three"));
}

TEST_F(JournalTest, ATornEndIsCutOffAtEveryByte) {
  ASSERT_EQ(Open(), absl::OkStatus());
  Keep({"one"});
  const uint64_t kept = journal_->size();
  Keep({"two"});
  const std::string bytes = ReadBytes(Segment(1));
  for (size_t size = kept + 1; size < bytes.size(); ++size) {
    Write(Segment(1), bytes.substr(0, size));
    ASSERT_EQ(Open(), absl::OkStatus());
    EXPECT_THAT(entries_, ElementsAre("", "one"));
    EXPECT_EQ(std::filesystem::file_size(Segment(1)), kept);
    EXPECT_THAT(note_, HasSubstr("at byte " + std::to_string(kept)));
    EXPECT_THAT(note_, HasSubstr(Segment(1)));
    Keep({"other"});
    ASSERT_EQ(Open(), absl::OkStatus());
    EXPECT_THAT(entries_, ElementsAre("", "one", "other"));
    EXPECT_EQ(note_, "");
  }
}

TEST_F(JournalTest, DamageIsRefusedAndChangesNothing) {
  ASSERT_EQ(Open(), absl::OkStatus());
  Keep({"one"});
  const uint64_t place = journal_->size();
  Keep({"two", "three"});
  std::string bytes = ReadBytes(Segment(1));
  bytes[place + 14] ^= 1;
  Write(Segment(1), bytes);
  const absl::Status status = Open();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(Segment(1)));
  EXPECT_THAT(std::string(status.message()), HasSubstr("at byte " + std::to_string(place) + ":"));
  EXPECT_EQ(ReadBytes(Segment(1)), bytes);
}

TEST_F(JournalTest, ARecordThatIsLeftOutIsNoticed) {
  ASSERT_EQ(Open(), absl::OkStatus());
  Keep({"one"});
  const uint64_t second = journal_->size();
  Keep({"two"});
  const uint64_t third = journal_->size();
  Keep({"333"});
  std::string bytes = ReadBytes(Segment(1));
  Write(Segment(1), bytes.substr(0, second) + bytes.substr(third));
  const absl::Status status = Open();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("does not follow"));
}

TEST_F(JournalTest, AFileOfAnotherKindIsRefused) {
  std::filesystem::create_directories(Directory());
  std::string bytes;
  AppendRecord(std::string(4, '\0') + "ringmaster journal 2 1", &bytes);
  Write(Segment(1), bytes);
  const absl::Status status = Open();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("ringmaster journal 2 1"));
}

TEST_F(JournalTest, TheNewestSegmentWithASnapshotIsUsed) {
  ASSERT_EQ(Open(), absl::OkStatus());
  Keep({"one"});
  const std::string former = ReadBytes(Segment(1));
  ASSERT_EQ(journal_->Rotate("snapshot"), absl::OkStatus());
  Keep({"two"});
  const std::string newest = ReadBytes(Segment(2));
  // A crash before the former one was deleted.
  Write(Segment(1), former);
  ASSERT_EQ(Open(), absl::OkStatus());
  EXPECT_THAT(entries_, ElementsAre("snapshot", "two"));
  EXPECT_THAT(Files(), ElementsAre("00000002.log"));
  // A disk that renamed the new one before it held anything.
  Write(Segment(1), former);
  Write(Segment(2), newest.substr(0, 30));
  ASSERT_EQ(Open(), absl::OkStatus());
  EXPECT_THAT(entries_, ElementsAre("", "one"));
  EXPECT_THAT(note_, HasSubstr(Segment(2)));
  EXPECT_THAT(Files(), ElementsAre("00000001.log"));
  ASSERT_EQ(journal_->Rotate("next"), absl::OkStatus());
  EXPECT_THAT(Files(), ElementsAre("00000003.log"));
}

TEST_F(JournalTest, ASegmentWithoutItsSnapshotIsRefused) {
  ASSERT_EQ(Open(), absl::OkStatus());
  const std::string bytes = ReadBytes(Segment(1));
  for (size_t size = 0; size < bytes.size(); ++size) {
    Write(Segment(1), bytes.substr(0, size));
    EXPECT_EQ(Open().code(), absl::StatusCode::kDataLoss) << size;
  }
}

TEST_F(JournalTest, LeftoversAreRemoved) {
  ASSERT_EQ(Open(), absl::OkStatus());
  Keep({"one"});
  Write(Segment(2) + ".77-0.tmp", "half a segment");
  Write(Directory() + "/notes.txt", "of a person");
  ASSERT_EQ(Open(), absl::OkStatus());
  EXPECT_THAT(entries_, ElementsAre("", "one"));
  EXPECT_THAT(Files(), UnorderedElementsAre("00000001.log", "notes.txt"));
}

// Files of this process may not grow past `bytes`, as on a full disk.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) : handler_(signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit full = {bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &full);
  }
  ~FullDisk() {
    setrlimit(RLIMIT_FSIZE, &before_);
    signal(SIGXFSZ, handler_);
  }

 private:
  sighandler_t handler_;
  rlimit before_ = {};
};

TEST_F(JournalTest, AFullDiskKeepsWhatIsPending) {
  ASSERT_EQ(Open(), absl::OkStatus());
  Keep({"one"});
  const uint64_t kept = journal_->size();
  journal_->Append(std::string(100, '2'));
  {
    FullDisk full(kept + 50);
    for (int attempt = 0; attempt < 3; ++attempt) {
      const absl::Status status = journal_->Commit();
      EXPECT_FALSE(status.ok());
      EXPECT_THAT(std::string(status.message()), HasSubstr(Segment(1)));
      EXPECT_TRUE(journal_->pending());
      EXPECT_EQ(std::filesystem::file_size(Segment(1)), kept) << "cut back to what is durable";
    }
    EXPECT_FALSE(journal_->Rotate(std::string(1000, 's')).ok());
    EXPECT_TRUE(journal_->pending());
    journal_->Append("three");
  }
  ASSERT_EQ(journal_->Commit(), absl::OkStatus());
  EXPECT_THAT(Files(), ElementsAre("00000001.log")) << "a full disk is no reason to start anew";
  ASSERT_EQ(Open(), absl::OkStatus());
  EXPECT_THAT(entries_, ElementsAre("", "one", std::string(100, '2'), "three"));
}

// As when the sync after a rename fails: Open might take the new segment, so that an entry in the
// former one could be lost.
TEST_F(JournalTest, ARotationThatMayHaveHappenedIsPassedBy) {
  ASSERT_EQ(Open(), absl::OkStatus());
  Keep({"one"});
  journal_->Append("two");
  std::filesystem::create_directory(Segment(2));
  EXPECT_FALSE(journal_->Rotate("one and two").ok());
  EXPECT_TRUE(journal_->pending());
  journal_->Append("three");
  ASSERT_EQ(journal_->Commit(), absl::OkStatus());
  EXPECT_TRUE(std::filesystem::exists(Segment(3)));
  ASSERT_EQ(Open(), absl::OkStatus());
  EXPECT_THAT(entries_, ElementsAre("", "one", "two", "three"));
}

// The state that a crash at any byte leaves, without anything but a file that is cut.
TEST_F(JournalTest, EveryPrefixGivesAPrefix) {
  ASSERT_EQ(Open(), absl::OkStatus());
  ASSERT_EQ(journal_->Rotate(NumberedSnapshot(10)), absl::OkStatus());
  std::vector<uint64_t> ends = {journal_->size()};
  for (uint64_t number = 11; number <= 12; ++number) {
    Keep({NumberedEntry(number)});
    ends.push_back(journal_->size());
  }
  const std::string bytes = ReadBytes(Segment(2));
  for (size_t size = ends[0]; size <= bytes.size(); ++size) {
    Write(Segment(2), bytes.substr(0, size));
    ASSERT_EQ(Open(), absl::OkStatus()) << size;
    size_t kept = 0;
    while (kept + 1 < ends.size() && ends[kept + 1] <= size) ++kept;
    EXPECT_EQ(LastNumber(entries_), 10 + kept) << size;
  }
}

TEST(MemoryJournalTest, KeepsWhatWasCommitted) {
  MemoryJournal journal;
  EXPECT_THAT(journal.Crash(), ElementsAre(""));
  journal.Append("one");
  ASSERT_EQ(journal.Commit(), absl::OkStatus());
  journal.Append("two");
  EXPECT_TRUE(journal.pending());
  EXPECT_THAT(journal.Crash(), ElementsAre("", "one"));
  EXPECT_FALSE(journal.pending());
  journal.Append("three");
  ASSERT_EQ(journal.Rotate("all"), absl::OkStatus());
  EXPECT_THAT(journal.Crash(), ElementsAre("all"));
  EXPECT_EQ(journal.size(), 23u);
}

TEST(MemoryJournalTest, AFullDisk) {
  MemoryJournal journal;
  journal.Append("one");
  journal.Fail(absl::ResourceExhaustedError("full"));
  EXPECT_EQ(journal.Commit().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(journal.Rotate("all").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(journal.pending());
  journal.Fail(absl::OkStatus());
  ASSERT_EQ(journal.Commit(), absl::OkStatus());
  EXPECT_THAT(journal.Crash(), ElementsAre("", "one"));
}

TEST(MemoryJournalTest, ADiskThatLiesLosesWhatItPromised) {
  MemoryJournal journal(MemoryJournal::Disk::kLies);
  journal.Append("one");
  ASSERT_EQ(journal.Commit(), absl::OkStatus());
  EXPECT_FALSE(journal.pending());
  EXPECT_THAT(journal.Crash(), ElementsAre(""));
}

}  // namespace
}  // namespace ringmaster
