#include "coordinator/checkpoint_store.h"

#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <future>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/checkpoints.h"
#include "tests/temporary_directory.h"

namespace ringmaster {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

using Kind = CheckpointStore::Kind;
using Written = absl::StatusOr<std::string>;

// ---------------------------------------------------------------- names and retention

TEST(CheckpointNameTest, FormatAndParse) {
  EXPECT_EQ((CheckpointName{3, 120, 5}.FileName()), "e0003-s00120-g5.safetensors");
  for (const CheckpointName& name :
       {CheckpointName{3, 120, 5}, CheckpointName{}, CheckpointName{12345, 1234567, 1},
        CheckpointName{UINT32_MAX, UINT32_MAX, UINT64_MAX}}) {
    EXPECT_EQ(CheckpointName::Parse(name.FileName()), name) << name.FileName();
  }
}

TEST(CheckpointNameTest, OtherNamesAreNone) {
  for (const char* name : {"", "weights.safetensors", "e0003-s00120-g5", "e3-s120-g5.safetensors",
                           "e0003-s00120-g05.safetensors", "e0003-s00120-g.safetensors",
                           "e0003-s00120-g-5.safetensors", "e0003-s00120-g5.safetensors.1-0.tmp",
                           "xe0003-s00120-g5.safetensors", "e4294967296-s00120-g5.safetensors"}) {
    EXPECT_EQ(CheckpointName::Parse(name), std::nullopt) << name;
  }
}

TEST(CheckpointNameTest, OrderIsThatOfPositions) {
  EXPECT_LT((CheckpointName{3, 120, 5}), (CheckpointName{3, 121, 4}));
  EXPECT_LT((CheckpointName{3, 469, 5}), (CheckpointName{4, 0, 5}));
  EXPECT_LT((CheckpointName{9999, 0, 5}), (CheckpointName{10000, 0, 5}));
  EXPECT_LT((CheckpointName{3, 120, 9}), (CheckpointName{3, 120, 10}));
  EXPECT_LT((CheckpointName{3, 120, 5}.FileName()), (CheckpointName{12, 0, 5}.FileName()));
}

CheckpointFile FileAt(uint32_t epoch, bool registered = true, bool verified = true) {
  return {{epoch, 0, 1}, 0, verified ? absl::OkStatus() : absl::DataLossError("?"), registered};
}
std::string NameAt(uint32_t epoch) { return CheckpointName{epoch, 0, 1}.FileName(); }

TEST(RetentionTest, KeepsTheNewest) {
  EXPECT_THAT(ToDelete({}, 3), IsEmpty());
  EXPECT_THAT(ToDelete({FileAt(3), FileAt(1), FileAt(2)}, 3), IsEmpty());
  EXPECT_THAT(ToDelete({FileAt(3), FileAt(5), FileAt(1), FileAt(4), FileAt(2)}, 3),
              UnorderedElementsAre(NameAt(1), NameAt(2)));
  EXPECT_THAT(ToDelete({FileAt(3), FileAt(5)}, 1), ElementsAre(NameAt(3)));
}

TEST(RetentionTest, DamagedFilesCountForNothingAndStay) {
  EXPECT_THAT(ToDelete({FileAt(1), FileAt(2), FileAt(3), FileAt(4, true, false)}, 3), IsEmpty());
  EXPECT_THAT(ToDelete({FileAt(1, true, false), FileAt(2), FileAt(3), FileAt(4), FileAt(5)}, 3),
              ElementsAre(NameAt(2)));
}

TEST(RetentionTest, UnregisteredFilesCountForNothingAndGoOnceTheyAreOld) {
  EXPECT_THAT(ToDelete({FileAt(1), FileAt(2), FileAt(3), FileAt(4, false)}, 3), IsEmpty());
  EXPECT_THAT(ToDelete({FileAt(1, false), FileAt(2), FileAt(3), FileAt(4, false), FileAt(5)}, 3),
              ElementsAre(NameAt(1)));
}

// ---------------------------------------------------------------- the store

class CheckpointStoreTest : public ::testing::Test {
 protected:
  std::unique_ptr<CheckpointStore> Open(CheckpointStore::Predicate registered = nullptr) {
    auto store = CheckpointStore::Open({path_, 3, std::move(registered)});
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? *std::move(store) : nullptr;
  }

  static std::future<Written> StartWrite(CheckpointStore* store, uint64_t position,
                                         uint64_t generation = 1, Kind kind = Kind::kRequired) {
    auto promise = std::make_shared<std::promise<Written>>();
    store->Write(CheckpointAt(position, generation), kind, [promise](const Written& path) {
      // A status of this thread's own: Abseil as packaged is not instrumented, so ThreadSanitizer
      // does not see the atomic reference count by which threads share one.
      if (path.ok()) return promise->set_value(path);
      promise->set_value(absl::Status(path.status().code(), path.status().message()));
    });
    return promise->get_future();
  }
  static Written Write(CheckpointStore* store, uint64_t position, uint64_t generation = 1) {
    return StartWrite(store, position, generation).get();
  }

  std::string PathAt(uint64_t position, uint64_t generation = 1) const {
    const Checkpoint checkpoint = CheckpointAt(position, generation);
    return path_ + "/" +
           CheckpointName{checkpoint.epoch(), checkpoint.step(), generation}.FileName();
  }
  // The positions of the files that are there.
  std::set<uint64_t> Positions() const {
    std::set<uint64_t> positions;
    for (uint64_t position = 0; position <= SmallRecipe().timeline().end(); ++position) {
      if (access(PathAt(position).c_str(), F_OK) == 0) positions.insert(position);
    }
    return positions;
  }

  static void Damage(const std::string& path) {
    std::string bytes = ReadFile(path).value();
    bytes.back() ^= 1;
    ASSERT_EQ(WriteFileAtomically(path, bytes), absl::OkStatus());
  }

  TemporaryDirectory directory_;
  const std::string path_ = directory_.File("checkpoints");
};

// Holds the writer's thread in the `done` of a first checkpoint.
class BusyWriter {
 public:
  explicit BusyWriter(CheckpointStore* store) {
    store->Write(CheckpointAt(0), Kind::kRequired, [this](const Written&) {
      reached_.set_value();
      released_.get_future().wait();
    });
    reached_.get_future().wait();
  }
  void Release() { released_.set_value(); }

 private:
  std::promise<void> reached_;
  std::promise<void> released_;
};

TEST_F(CheckpointStoreTest, WrittenAndFoundAgain) {
  const Checkpoint wanted = CheckpointAt(7, 5);
  {
    const auto store = Open();
    const Written path = Write(store.get(), 7, 5);
    ASSERT_TRUE(path.ok()) << path.status();
    EXPECT_EQ(*path, path_ + "/e0001-s00002-g5.safetensors");
    EXPECT_EQ(LoadCheckpoint(*path).value(), wanted);
  }
  std::vector<std::string> notes;
  const auto loaded = Open()->LoadNewest(nullptr, &notes);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->checkpoint, wanted);
  EXPECT_EQ(loaded->path, PathAt(7, 5));
  EXPECT_THAT(notes, IsEmpty());
}

TEST_F(CheckpointStoreTest, WritingTheSameAgainReplacesIt) {
  const auto store = Open();
  ASSERT_TRUE(Write(store.get(), 7).ok());
  ASSERT_TRUE(Write(store.get(), 7).ok());
  EXPECT_EQ(store->files().size(), 1u);
}

TEST_F(CheckpointStoreTest, DirectoryThatCannotBe) {
  EXPECT_EQ(CheckpointStore::Open({directory_.File("no/such")}).status().code(),
            absl::StatusCode::kNotFound);
  ASSERT_EQ(WriteFileAtomically(path_, "a file"), absl::OkStatus());
  const absl::Status status = CheckpointStore::Open({path_}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
}

TEST_F(CheckpointStoreTest, TheNewestThreeStay) {
  const auto store = Open();
  for (uint64_t position = 1; position <= 12; ++position) {
    ASSERT_TRUE(Write(store.get(), position).ok());
    // Deleting comes after `done`: once the next one is done, it is over.
    ASSERT_GE(Positions().size(), std::min<uint64_t>(position, 3));
    ASSERT_LE(Positions().size(), 4u);
  }
  const auto barrier = Write(store.get(), 12);
  ASSERT_TRUE(barrier.ok());
  EXPECT_THAT(Positions(), ElementsAre(10, 11, 12));
  EXPECT_EQ(store->files().size(), 3u);
}

TEST_F(CheckpointStoreTest, UnregisteredOnesDoNotPushOutRegisteredOnes) {
  const std::set<uint64_t> registered = {1, 2, 3, 8};
  auto store = Open([&](uint64_t, uint64_t position) { return registered.count(position) > 0; });
  for (const uint64_t position : {1, 2, 3, 4, 5, 6, 7}) {
    ASSERT_TRUE(Write(store.get(), position).ok());
  }
  store = nullptr;
  EXPECT_THAT(Positions(), ElementsAre(1, 2, 3, 4, 5, 6, 7));
  store = Open([&](uint64_t, uint64_t position) { return registered.count(position) > 0; });
  ASSERT_TRUE(Write(store.get(), 8).ok());
  store = nullptr;
  EXPECT_THAT(Positions(), ElementsAre(2, 3, 4, 5, 6, 7, 8));
}

TEST_F(CheckpointStoreTest, ANewerOneSupersedesTheOneThatWaits) {
  const auto store = Open();
  BusyWriter busy(store.get());
  auto first = StartWrite(store.get(), 1, 1, Kind::kPeriodic);
  auto second = StartWrite(store.get(), 2, 1, Kind::kPeriodic);
  auto third = StartWrite(store.get(), 3, 1, Kind::kPeriodic);
  busy.Release();
  EXPECT_TRUE(third.get().ok());
  for (auto* superseded : {&first, &second}) {
    const absl::Status status = superseded->get().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
    EXPECT_THAT(std::string(status.message()), HasSubstr("superseded"));
  }
  EXPECT_THAT(Positions(), ElementsAre(0, 3));
}

TEST_F(CheckpointStoreTest, RequiredOnesAreNeverSuperseded) {
  const auto store = Open();
  BusyWriter busy(store.get());
  auto periodic = StartWrite(store.get(), 1, 1, Kind::kPeriodic);
  auto required = StartWrite(store.get(), 2, 1, Kind::kRequired);
  auto last_but_one = StartWrite(store.get(), 3, 1, Kind::kRequired);
  auto last = StartWrite(store.get(), 4, 1, Kind::kPeriodic);
  busy.Release();
  EXPECT_EQ(periodic.get().status().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(required.get().ok());
  EXPECT_TRUE(last_but_one.get().ok());
  EXPECT_TRUE(last.get().ok());
}

TEST_F(CheckpointStoreTest, DoneMayCallTheStore) {
  const auto store = Open();
  std::promise<Written> second;
  store->Write(CheckpointAt(1), Kind::kPeriodic, [&](const Written&) {
    EXPECT_EQ(store->files().size(), 1u);
    store->Write(CheckpointAt(2), Kind::kPeriodic,
                 [&](const Written& path) { second.set_value(path); });
  });
  EXPECT_TRUE(second.get_future().get().ok());
}

TEST_F(CheckpointStoreTest, TheDestructorWritesWhatWaits) {
  std::future<Written> last;
  {
    const auto store = Open();
    for (uint64_t position = 1; position <= 9; ++position) {
      last = StartWrite(store.get(), position, 1, Kind::kPeriodic);
    }
  }
  EXPECT_TRUE(last.get().ok());
  EXPECT_TRUE(LoadCheckpoint(PathAt(9)).ok());
}

TEST_F(CheckpointStoreTest, StateThatDoesNotFitItsDigestIsNotWritten) {
  const auto store = Open();
  Checkpoint checkpoint = CheckpointAt(1);
  checkpoint.state.parameters[0] += 1;
  std::promise<Written> written;
  store->Write(checkpoint, Kind::kRequired, [&](const Written& path) { written.set_value(path); });
  EXPECT_EQ(written.get_future().get().status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Positions(), IsEmpty());
}

TEST_F(CheckpointStoreTest, DamagedNewestOneIsPassedOverAndStays) {
  {
    const auto store = Open();
    for (const uint64_t position : {1, 2, 3}) ASSERT_TRUE(Write(store.get(), position).ok());
  }
  Damage(PathAt(3));
  std::vector<std::string> notes;
  {
    const auto store = Open();
    const auto loaded = store->LoadNewest(nullptr, &notes);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->checkpoint, CheckpointAt(2));
    EXPECT_THAT(notes, ElementsAre(AllOf(HasSubstr(PathAt(3)), HasSubstr("checksum"))));
    for (const uint64_t position : {4, 5, 6, 7}) ASSERT_TRUE(Write(store.get(), position).ok());
  }
  EXPECT_THAT(Positions(), ElementsAre(3, 5, 6, 7));
}

TEST_F(CheckpointStoreTest, DamageSinceTheStoreWasOpenedIsSeen) {
  const auto store = Open();
  for (const uint64_t position : {1, 2, 3}) ASSERT_TRUE(Write(store.get(), position).ok());
  Damage(PathAt(3));
  ASSERT_EQ(unlink(PathAt(2).c_str()), 0);
  std::vector<std::string> notes;
  const auto loaded = store->LoadNewest(nullptr, &notes);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->checkpoint, CheckpointAt(1));
  EXPECT_THAT(notes, ElementsAre(HasSubstr(PathAt(3)), HasSubstr(PathAt(2))));
}

TEST_F(CheckpointStoreTest, TheCallerChoosesWhatIsUsable) {
  const auto store = Open();
  ASSERT_TRUE(Write(store.get(), 6, 1).ok());
  ASSERT_TRUE(Write(store.get(), 7, 1).ok());
  ASSERT_TRUE(Write(store.get(), 7, 2).ok());
  std::vector<std::string> notes;
  const auto load = [&](const CheckpointStore::Predicate& usable) {
    const auto loaded = store->LoadNewest(usable, &notes);
    return loaded.ok() ? std::pair(loaded->checkpoint.position, loaded->checkpoint.generation)
                       : std::pair(uint64_t{0}, uint64_t{0});
  };
  EXPECT_EQ(load(nullptr), std::pair(uint64_t{7}, uint64_t{2}));
  EXPECT_EQ(load([](uint64_t generation, uint64_t) { return generation == 1; }),
            std::pair(uint64_t{7}, uint64_t{1}));
  EXPECT_EQ(load([](uint64_t, uint64_t position) { return position < 7; }),
            std::pair(uint64_t{6}, uint64_t{1}));
  EXPECT_THAT(notes, ElementsAre(AllOf(HasSubstr("g2"), HasSubstr("not one this run goes on")),
                                 HasSubstr("g1")));
  const absl::Status status =
      store->LoadNewest([](uint64_t, uint64_t) { return false; }, &notes).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path_), HasSubstr("e0001-s00001-g1")));
}

TEST_F(CheckpointStoreTest, NothingToLoad) {
  std::vector<std::string> notes;
  EXPECT_EQ(Open()->LoadNewest(nullptr, &notes).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(notes, IsEmpty());
}

TEST_F(CheckpointStoreTest, FileUnderAnotherNameIsRefused) {
  const auto store = Open();
  ASSERT_TRUE(Write(store.get(), 6).ok());
  ASSERT_EQ(link(PathAt(6).c_str(), PathAt(9).c_str()), 0);
  std::vector<std::string> notes;
  const auto loaded = Open()->LoadNewest(nullptr, &notes);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->path, PathAt(6));
  EXPECT_THAT(notes, ElementsAre(AllOf(HasSubstr(PathAt(9)), HasSubstr("renamed or copied"))));
}

TEST_F(CheckpointStoreTest, TemporaryFilesOfTheDeadGoAndOthersStay) {
  ASSERT_EQ(mkdir(path_.c_str(), 0777), 0);
  const std::string stale = PathAt(6) + ".4711-0.tmp";
  const std::vector<std::string> others = {path_ + "/notes.tmp", path_ + "/weights.safetensors",
                                           path_ + "/weights.safetensors.4711-0.tmp"};
  ASSERT_EQ(WriteFileAtomically(stale, "torn"), absl::OkStatus());
  for (const auto& other : others) ASSERT_EQ(WriteFileAtomically(other, "?"), absl::OkStatus());
  const auto store = Open();
  EXPECT_NE(access(stale.c_str(), F_OK), 0);
  for (const auto& other : others) EXPECT_EQ(access(other.c_str(), F_OK), 0) << other;
  EXPECT_THAT(store->files(), IsEmpty());
}

// ---------------------------------------------------------------- a full disk

std::set<std::string> NamesIn(const std::string& directory) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    names.insert(entry.path().filename().string());
  }
  return names;
}

// While it lives, no file of this process grows beyond `bytes`: a write past it is cut short, the
// next fails.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit = {bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  rlimit before_ = {};
};

TEST_F(CheckpointStoreTest, WriteThatFailsHalfwayLeavesTheOldOnesAndNothingElse) {
  const auto store = Open();
  for (const uint64_t position : {1, 2, 3}) ASSERT_TRUE(Write(store.get(), position).ok());
  const std::set<std::string> before = NamesIn(path_);
  {
    const FileSizeLimit limit(1000);
    const absl::Status status = Write(store.get(), 4).status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(PathAt(4)), HasSubstr("File too large")));
  }
  EXPECT_EQ(NamesIn(path_), before);
  for (const uint64_t position : {1, 2, 3}) EXPECT_TRUE(LoadCheckpoint(PathAt(position)).ok());
  EXPECT_TRUE(Write(store.get(), 4).ok());
}

// Ends a mount, however the test ends.
class Unmount {
 public:
  explicit Unmount(std::string path) : path_(std::move(path)) {}
  ~Unmount() { umount2(path_.c_str(), MNT_DETACH); }

 private:
  const std::string path_;
};

TEST_F(CheckpointStoreTest, FullDisk) {
  ASSERT_EQ(mkdir(path_.c_str(), 0777), 0);
  if (mount("tmpfs", path_.c_str(), "tmpfs", 0, "size=16k") != 0) {
    GTEST_SKIP() << "a file system of 16 KiB cannot be mounted: " << std::strerror(errno);
  }
  const Unmount unmount(path_);
  const auto store = Open();
  // 4 KiB each, of which a fourth would fit, but for another file.
  for (const uint64_t position : {1, 2, 3}) ASSERT_TRUE(Write(store.get(), position).ok());
  const std::string ballast = path_ + "/ballast";
  ASSERT_EQ(WriteFileAtomically(ballast, std::string(4096, 'x')), absl::OkStatus());
  const std::set<std::string> before = NamesIn(path_);
  const absl::Status status = Write(store.get(), 4).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(PathAt(4)), HasSubstr("No space left")));
  EXPECT_EQ(NamesIn(path_), before);
  for (const uint64_t position : {1, 2, 3}) EXPECT_TRUE(LoadCheckpoint(PathAt(position)).ok());
  // Space is made: the next one is written.
  ASSERT_EQ(unlink(ballast.c_str()), 0);
  EXPECT_TRUE(Write(store.get(), 5).ok());
}

}  // namespace
}  // namespace ringmaster
