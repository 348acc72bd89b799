#include "coordinator/tensorboard/event_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "coordinator/tensorboard/summary.h"
#include "tests/coordinator/event_reader.h"

namespace ringmaster::tensorboard {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;

const absl::Time kStart = absl::FromUnixMillis(1700000000250);

Summary Scalar(const std::string& tag, float value) {
  Summary summary;
  *summary.add_value() = ScalarValue(tag, value);
  return summary;
}

// Lines of hexadecimal digits; those that start with # are for people.
std::string ReadHex(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file) << path;
  std::string digits;
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with('#')) digits += line;
  }
  return absl::HexStringToBytes(digits);
}

class EventWriterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto writer = EventWriter::Create(directory_.path() + "/a/train", {"box", 4242}, kStart);
    ASSERT_TRUE(writer.ok()) << writer.status();
    writer_ = *std::move(writer);
  }

  std::vector<Event> Written() const { return ReadEvents(writer_->path()); }

  TemporaryDirectory directory_;
  std::unique_ptr<EventWriter> writer_;
};

TEST_F(EventWriterTest, NameAndFirstEvent) {
  EXPECT_THAT(writer_->path(), EndsWith("/a/train/events.out.tfevents.1700000000.box.4242.0"));
  const std::vector<Event> events = Written();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].file_version(), "brain.Event:2");
  EXPECT_EQ(events[0].wall_time(), 1700000000.25);
}

// Names sort by time even before the year 2001.
TEST_F(EventWriterTest, TimeInTheNameHasTenDigits) {
  auto early =
      EventWriter::Create(directory_.path() + "/early", {"box", 1}, absl::FromUnixSeconds(5));
  ASSERT_TRUE(early.ok()) << early.status();
  EXPECT_THAT((*early)->path(), EndsWith("/events.out.tfevents.0000000005.box.1.0"));
}

TEST_F(EventWriterTest, TheBytesOfAFile) {
  Summary first = Scalar("batch_loss", 0.5f);
  *first.add_value() = ScalarValue("batch_accuracy", 0.75f);
  *first.add_value() = TextValue("config", "| seed | 1 |");
  ASSERT_TRUE(writer_->Add(1, first, kStart + absl::Milliseconds(100)).ok());
  ASSERT_TRUE(writer_->Add(2, Scalar("batch_loss", 0.25f), kStart + absl::Milliseconds(200)).ok());
  Summary histogram;
  const std::vector<float> values = {-15, 0, 0.25f, 15};
  *histogram.add_value() = HistogramValue("dense/kernel/histogram", values);
  ASSERT_TRUE(writer_->Add(0, histogram, kStart + absl::Milliseconds(300)).ok());
  ASSERT_TRUE(writer_->Close().ok());

  const std::string bytes = ReadBytes(writer_->path());
  EXPECT_EQ(absl::BytesToHexString(bytes),
            absl::BytesToHexString(ReadHex("tests/golden/event_file.txt")));
}

TEST_F(EventWriterTest, MetadataOnlyWithATagsFirstValue) {
  for (int step = 1; step <= 2; ++step) {
    Summary summary = Scalar("a", 1);
    *summary.add_value() = ScalarValue(step == 1 ? "b" : "c", 2);
    ASSERT_TRUE(writer_->Add(step, summary, kStart).ok());
  }
  ASSERT_TRUE(writer_->Flush().ok());
  const std::vector<Event> events = Written();
  ASSERT_EQ(events.size(), 3u);
  EXPECT_TRUE(events[1].summary().value(0).has_metadata());
  EXPECT_TRUE(events[1].summary().value(1).has_metadata());
  EXPECT_FALSE(events[2].summary().value(0).has_metadata());
  EXPECT_TRUE(events[2].summary().value(1).has_metadata());
}

TEST_F(EventWriterTest, WritesOnceASecond) {
  ASSERT_TRUE(writer_->Add(1, Scalar("a", 1), kStart + absl::Milliseconds(999)).ok());
  EXPECT_EQ(Written().size(), 1u);
  ASSERT_TRUE(writer_->Add(2, Scalar("a", 2), kStart + absl::Milliseconds(1000)).ok());
  EXPECT_EQ(Written().size(), 3u);
  ASSERT_TRUE(writer_->Add(3, Scalar("a", 3), kStart + absl::Milliseconds(1999)).ok());
  EXPECT_EQ(Written().size(), 3u);
  ASSERT_TRUE(writer_->Flush().ok());
  EXPECT_EQ(Written().size(), 4u);
}

TEST_F(EventWriterTest, WritesThoughTheClockWasSetBack) {
  ASSERT_TRUE(writer_->Add(1, Scalar("a", 1), kStart - absl::Hours(1)).ok());
  EXPECT_EQ(Written().size(), 2u);
}

TEST_F(EventWriterTest, WallTimeIsAlwaysFinite) {
  int64_t step = 0;
  for (const absl::Time time : {absl::InfiniteFuture(), absl::InfinitePast(), absl::Time()}) {
    ASSERT_TRUE(writer_->Add(++step, Scalar("a", 1), time).ok());
  }
  ASSERT_TRUE(writer_->Close().ok());
  const std::vector<Event> events = Written();
  ASSERT_EQ(events.size(), 4u);
  for (const Event& event : events) EXPECT_TRUE(std::isfinite(event.wall_time()));
}

TEST_F(EventWriterTest, WritesWhatIsLeftAtTheEnd) {
  const std::string path = writer_->path();
  ASSERT_TRUE(writer_->Add(1, Scalar("a", 1), kStart).ok());
  writer_.reset();
  EXPECT_EQ(ReadEvents(path).size(), 2u);
}

TEST_F(EventWriterTest, OneWriterADirectory) {
  const auto second =
      EventWriter::Create(directory_.path() + "/a/train", {"box", 4243}, kStart + absl::Seconds(1));
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("/a/train"));
}

TEST_F(EventWriterTest, DirectoryThatCannotBe) {
  std::ofstream(directory_.path() + "/file") << "x";
  const auto writer = EventWriter::Create(directory_.path() + "/file/train", {"box", 1}, kStart);
  EXPECT_EQ(writer.status().code(), absl::StatusCode::kFailedPrecondition) << writer.status();
  EXPECT_THAT(std::string(writer.status().message()), HasSubstr("/file/train"));
}

// The kernel stops a file of this process at so many bytes: 300 are in the middle of a record.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes = 300) : handler_(signal(SIGXFSZ, SIG_IGN)) {
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

TEST_F(EventWriterTest, AFailedWriteLosesNothing) {
  {
    FullDisk full;
    for (int step = 1; step <= 20; ++step) {
      ASSERT_TRUE(writer_->Add(step, Scalar("a", step), kStart).ok());
    }
    EXPECT_FALSE(writer_->Flush().ok());
    EXPECT_EQ(std::filesystem::file_size(writer_->path()), 300u);
    const absl::Status status = writer_->Add(21, Scalar("a", 21), kStart + absl::Seconds(2));
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr(writer_->path()));
    EXPECT_TRUE(writer_->Add(22, Scalar("a", 22), kStart + absl::Milliseconds(2500)).ok())
        << "an error once a second is enough";
  }
  ASSERT_TRUE(writer_->Close().ok());
  const std::vector<Point> points = Scalars(Written(), "a");
  ASSERT_EQ(points.size(), 22u);
  for (int i = 0; i < 22; ++i) EXPECT_EQ(points[i], (Point{i + 1, i + 1.0}));
}

TEST_F(EventWriterTest, ADiskFullForLongDoesNotFillTheMemory) {
  FullDisk full;
  Summary megabyte;
  *megabyte.add_value() = TextValue("text", std::string(1 << 20, 'x'));
  absl::Status status;
  int kept = 0;
  for (; kept < 1000; ++kept) {
    status = writer_->Add(kept, megabyte, kStart);
    if (status.code() == absl::StatusCode::kResourceExhausted) break;
  }
  EXPECT_EQ(kept, 64) << status;
  EXPECT_FALSE(writer_->Close().ok());
}

// What several lives of a writer leave in one directory.
class EventWriterLivesTest : public ::testing::Test {
 protected:
  // A life that starts `seconds` after kStart, adds the values first ... last of `a` and ends.
  void Live(int seconds, int first, int last) {
    Resume(seconds);
    for (int step = first; step <= last; ++step) {
      ASSERT_TRUE(writer_->Add(step, Scalar("a", step), kStart).ok());
    }
    writer_.reset();
  }
  void Resume(int seconds) {
    auto writer = EventWriter::Resume(directory_.path(), {"box", 4242},
                                      kStart + absl::Seconds(seconds), &note_);
    ASSERT_TRUE(writer.ok()) << writer.status();
    writer_ = *std::move(writer);
    path_ = writer_->path();
  }
  void ExpectEachStepOnce(int last) const {
    const std::vector<Point> points = Scalars(ReadLives(directory_.path()), "a");
    ASSERT_EQ(points.size(), static_cast<size_t>(last));
    for (int i = 0; i < last; ++i) EXPECT_EQ(points[i], (Point{i + 1, i + 1.0}));
  }

  TemporaryDirectory directory_;
  std::unique_ptr<EventWriter> writer_;
  std::string path_;  // of the last life
  std::string note_;
};

TEST_F(EventWriterLivesTest, TheFirstIsAsEver) {
  Live(0, 1, 3);
  EXPECT_EQ(note_, "");
  EXPECT_THAT(path_, EndsWith("/events.out.tfevents.1700000000.box.4242.0"));
  const std::string resumed = ReadBytes(path_);
  const TemporaryDirectory other;
  auto writer = EventWriter::Create(other.path(), {"box", 4242}, kStart);
  ASSERT_TRUE(writer.ok());
  for (int step = 1; step <= 3; ++step) {
    ASSERT_TRUE((*writer)->Add(step, Scalar("a", step), kStart).ok());
  }
  ASSERT_TRUE((*writer)->Close().ok());
  EXPECT_EQ(resumed, ReadBytes((*writer)->path()));
}

TEST_F(EventWriterLivesTest, GoesOnInANewFile) {
  Live(0, 1, 3);
  const std::string former = ReadBytes(path_);
  const std::string former_path = path_;
  Live(60, 4, 5);
  EXPECT_THAT(path_, EndsWith("/events.out.tfevents.1700000060.box.4242.0"));
  EXPECT_EQ(ReadBytes(former_path), former);
  ExpectEachStepOnce(5);
  const std::vector<Event> events = ReadEvents(path_);
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0].file_version(), "brain.Event:2");
  EXPECT_TRUE(events[1].summary().value(0).has_metadata());
  EXPECT_FALSE(events[2].summary().value(0).has_metadata());
}

TEST_F(EventWriterLivesTest, LaterFilesSortLaterWhateverTheClockSays) {
  Live(0, 1, 1);
  for (int life = 1; life <= 3; ++life) {
    const std::string former = path_;
    Live(-3600, life + 1, life + 1);
    EXPECT_GT(path_, former);
    EXPECT_THAT(path_, HasSubstr("tfevents." + std::to_string(1700000000 + life) + "."));
  }
  ExpectEachStepOnce(4);
}

TEST_F(EventWriterLivesTest, WhatIsThereIsDropped) {
  Live(0, 1, 10);
  Live(1, 4, 12);
  Live(2, 1, 15);
  ExpectEachStepOnce(15);
}

TEST_F(EventWriterLivesTest, StepsThatGoBackAreDropped) {
  Resume(0);
  for (const int step : {1, 2, 3, 2, 3, 4}) {
    Summary summary = Scalar("a", step);
    if (step == 2) *summary.add_value() = ScalarValue("b", step);
    ASSERT_TRUE(writer_->Add(step, summary, kStart).ok());
  }
  ASSERT_TRUE(writer_->Close().ok());
  ExpectEachStepOnce(4);
  EXPECT_THAT(Scalars(ReadEvents(path_), "b"), ElementsAre(Point{2, 2}));
  EXPECT_EQ(ReadEvents(path_).size(), 5u) << "an event without values";
}

TEST_F(EventWriterLivesTest, TagsCountByThemselves) {
  Live(0, 1, 5);
  Resume(1);
  Summary summary = Scalar("a", 3);
  *summary.add_value() = ScalarValue("b", 7);
  ASSERT_TRUE(writer_->Add(3, summary, kStart).ok());
  writer_.reset();
  ExpectEachStepOnce(5);
  EXPECT_THAT(Scalars(ReadLives(directory_.path()), "b"), ElementsAre(Point{3, 7}));
}

TEST_F(EventWriterLivesTest, ATornEndAtEveryByte) {
  Live(0, 1, 3);
  const std::string first = path_;
  const std::string whole = ReadBytes(first);
  for (size_t size = 0; size < whole.size(); ++size) {
    std::ofstream(first, std::ios::binary | std::ios::trunc) << whole.substr(0, size);
    Live(1, 1, 5);
    ExpectEachStepOnce(5);
    std::filesystem::remove(path_);
  }
}

TEST_F(EventWriterLivesTest, ATornEndIsToldAndCutOff) {
  Live(0, 1, 3);
  const std::string whole = ReadBytes(path_);
  const std::string torn = path_;
  for (const std::string& end : {std::string("\3\0\0", 3), std::string(700, '\0')}) {
    std::ofstream(torn, std::ios::binary | std::ios::trunc) << whole << end;
    Live(1, 1, 5);
    EXPECT_EQ(ReadBytes(torn), whole);
    EXPECT_THAT(note_, HasSubstr(torn));
    ExpectEachStepOnce(5);
    std::filesystem::remove(path_);
  }
}

TEST_F(EventWriterLivesTest, ADamagedFileIsLeftAndWhatItHidesIsLoggedAnew) {
  Live(0, 1, 5);
  std::string bytes = ReadBytes(path_);
  const std::string damaged = path_;
  bytes[bytes.size() - 40] ^= 1;  // in the last event
  std::ofstream(damaged, std::ios::binary | std::ios::trunc) << bytes;
  Live(1, 1, 6);
  EXPECT_EQ(ReadBytes(damaged), bytes);
  EXPECT_THAT(note_, HasSubstr(damaged + " is damaged at byte "));
  EXPECT_THAT(Scalars(ReadEvents(path_), "a"), ElementsAre(Point{5, 5}, Point{6, 6}));
}

TEST_F(EventWriterLivesTest, AFullDiskIsNoErrorAndLosesNothing) {
  Live(0, 1, 2);
  {
    FullDisk full(10);
    Resume(1);
    for (int step = 1; step <= 5; ++step) {
      ASSERT_TRUE(writer_->Add(step, Scalar("a", step), kStart + absl::Seconds(1)).ok());
    }
    EXPECT_FALSE(writer_->Sync().ok());
  }
  ASSERT_TRUE(writer_->Close().ok());
  ExpectEachStepOnce(5);
}

}  // namespace
}  // namespace ringmaster::tensorboard
