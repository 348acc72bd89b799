// 10,000 corruptions of a journal, by seed: Open gives a prefix of what was kept or refuses, and
// allocates no more than the files hold.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "coordinator/journal.h"
#include "tests/coordinator/event_reader.h"
#include "tests/coordinator/numbered_entries.h"
#include "tests/temporary_directory.h"

namespace {
std::atomic<size_t> largest_allocation = 0;
}  // namespace

// Not inlined, for gcc would take free() there for a mismatch with operator new.
__attribute__((noinline)) void* operator new(size_t size) {
  if (size > largest_allocation) largest_allocation = size;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace ringmaster {
namespace {

constexpr int kCorruptions = 10000;
constexpr uint64_t kFirst = 100;
constexpr uint64_t kEntries = 12;
constexpr size_t kAnyway = size_t{1} << 17;  // buffers of the library

// The bytes of a segment with these entries; the second number of all.
std::string MakeSegment(uint64_t first) {
  const TemporaryDirectory directory;
  std::vector<std::string> entries;
  std::string note;
  auto journal = FileJournal::Open(directory.path(), &entries, &note);
  EXPECT_TRUE(journal.ok()) << journal.status();
  EXPECT_TRUE((*journal)->Rotate(NumberedSnapshot(first)).ok());
  for (uint64_t number = first + 1; number <= first + kEntries; ++number) {
    (*journal)->Append(NumberedEntry(number));
  }
  EXPECT_TRUE((*journal)->Commit().ok());
  return tensorboard::ReadBytes(directory.File("00000002.log"));
}

class Corrupter {
 public:
  Corrupter(std::string good, std::string other, int seed)
      : bytes_(std::move(good)), other_(std::move(other)), random_(seed) {}

  std::string Corrupt() {
    const size_t count = 1 + Below(3);
    for (size_t i = 0; i < count; ++i) CorruptOnce();
    return bytes_;
  }

 private:
  size_t Below(size_t bound) { return bound == 0 ? 0 : random_() % bound; }

  void CorruptOnce() {
    const size_t at = Below(bytes_.size());
    const size_t count = Below(bytes_.size() - at + 1);
    const size_t from = Below(other_.size());
    switch (Below(6)) {
      case 0:  // flip bits
        for (size_t i = 0; i <= Below(8) && !bytes_.empty(); ++i) {
          bytes_[Below(bytes_.size())] ^= static_cast<char>(1 << Below(8));
        }
        return;
      case 1:  // cut short
        bytes_.resize(at);
        return;
      case 2:  // leave out
        bytes_.erase(at, count);
        return;
      case 3:  // repeat
        bytes_.insert(Below(bytes_.size()), bytes_.substr(at, count));
        return;
      case 4:  // splice in what another journal has there, or elsewhere
        bytes_.replace(at, count, other_.substr(Below(2) == 0 ? at % other_.size() : from, count));
        return;
      default:  // lose to zeros
        bytes_.replace(at, count, std::string(count, '\0'));
        return;
    }
  }

  std::string bytes_;
  const std::string other_;
  std::mt19937 random_;
};

TEST(JournalCorruptionTest, GivesAPrefixOrRefuses) {
  const std::string good = MakeSegment(kFirst);
  const std::string other = MakeSegment(kFirst + 1);
  const TemporaryDirectory directory;
  const std::string path = directory.File("00000002.log");
  int refused = 0;
  for (int seed = 0; seed < kCorruptions; ++seed) {
    const std::string bytes = Corrupter(good, other, seed).Corrupt();
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    std::vector<std::string> entries;
    std::string note;
    largest_allocation = 0;
    const auto journal = FileJournal::Open(directory.path(), &entries, &note);
    ASSERT_LE(largest_allocation, bytes.size() + kAnyway) << "seed " << seed;
    if (!journal.ok()) {
      ++refused;
      ASSERT_EQ(journal.status().code(), absl::StatusCode::kDataLoss) << "seed " << seed;
      ASSERT_EQ(tensorboard::ReadBytes(path), bytes) << "seed " << seed << ": it was changed";
      continue;
    }
    const auto last = LastNumber(entries);
    ASSERT_TRUE(last.has_value()) << "seed " << seed << ": a mix";
    ASSERT_GE(*last, kFirst) << "seed " << seed;
    ASSERT_LE(*last, kFirst + kEntries) << "seed " << seed;
    ASSERT_TRUE(good.starts_with(bytes) || !note.empty()) << "seed " << seed << ": it was not told";
  }
  EXPECT_GT(refused, kCorruptions / 2);
  EXPECT_LT(refused, kCorruptions) << "a torn end is no damage";
}

}  // namespace
}  // namespace ringmaster
