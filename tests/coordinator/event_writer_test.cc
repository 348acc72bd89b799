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
  for (const absl::Time time : {absl::InfiniteFuture(), absl::InfinitePast(), absl::Time()}) {
    ASSERT_TRUE(writer_->Add(1, Scalar("a", 1), time).ok());
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

// The kernel stops a file of this process at 300 bytes, in the middle of a record.
class FullDisk {
 public:
  FullDisk() : handler_(signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit full = {300, before_.rlim_max};
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

}  // namespace
}  // namespace ringmaster::tensorboard
