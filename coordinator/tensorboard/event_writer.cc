#include "coordinator/tensorboard/event_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "coordinator/record.h"

namespace ringmaster::tensorboard {
namespace {

constexpr char kFileVersion[] = "brain.Event:2";
constexpr absl::Duration kWriteInterval = absl::Seconds(1);
// A burst is written early, and a disk that takes nothing does not take the memory either.
constexpr size_t kWriteBytes = size_t{1} << 20;
constexpr size_t kMaxWaitingBytes = size_t{64} << 20;

// Finite for any `time`: whole microseconds saturate.
double WallTime(absl::Time time) { return static_cast<double>(absl::ToUnixMicros(time)) * 1e-6; }

absl::Status MakeDirectory(const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) {
    return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot create ", directory));
  }
  for (std::filesystem::directory_iterator file(directory, error), end; !error && file != end;
       file.increment(error)) {
    if (file->path().filename().string().find("tfevents") != std::string::npos) {
      return absl::AlreadyExistsError(absl::StrCat(directory, " holds an event file already (",
                                                   file->path().filename().string(),
                                                   "); choose another run directory"));
    }
  }
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot read ", directory));
  return absl::OkStatus();
}

}  // namespace

EventSource EventSource::ThisProcess() {
  char host[256] = "";
  if (gethostname(host, sizeof host - 1) != 0 || host[0] == '\0') std::strcpy(host, "localhost");
  return EventSource{host, getpid()};
}

absl::StatusOr<std::unique_ptr<EventWriter>> EventWriter::Create(const std::string& directory,
                                                                 const EventSource& source,
                                                                 absl::Time now) {
  RM_RETURN_IF_ERROR(MakeDirectory(directory));
  const std::string path = absl::StrFormat("%s/events.out.tfevents.%010d.%s.%d.0", directory,
                                           absl::ToUnixSeconds(now), source.host, source.pid);
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot create ", path));
  std::unique_ptr<EventWriter> writer(new EventWriter(path, fd, now));
  RM_RETURN_IF_ERROR(writer->Flush());
  return writer;
}

EventWriter::EventWriter(std::string path, int fd, absl::Time now)
    : path_(std::move(path)), fd_(fd), written_at_(now) {
  Event version;
  version.set_wall_time(WallTime(now));
  version.set_file_version(kFileVersion);
  Append(version);
}

EventWriter::~EventWriter() {
  if (fd_ < 0) return;
  Flush().IgnoreError();
  close(fd_);
}

absl::Status EventWriter::Add(int64_t step, Summary summary, absl::Time now) {
  if (waiting_.size() >= kMaxWaitingBytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        waiting_.size() >> 20, " MiB wait to be written to ", path_, ": values are dropped"));
  }
  for (Summary::Value& value : *summary.mutable_value()) {
    if (!tags_.insert(value.tag()).second) value.clear_metadata();
  }
  Event event;
  event.set_wall_time(WallTime(now));
  event.set_step(step);
  *event.mutable_summary() = std::move(summary);
  Append(event);

  const bool due = now - written_at_ >= kWriteInterval || now < written_at_;
  if (!due && waiting_.size() < kWriteBytes) return absl::OkStatus();
  written_at_ = now;
  return Flush();
}

void EventWriter::Append(const Event& event) { AppendRecord(event.SerializeAsString(), &waiting_); }

absl::Status EventWriter::Flush() {
  size_t done = 0;
  absl::Status status;
  while (done < waiting_.size()) {
    const ssize_t count = write(fd_, waiting_.data() + done, waiting_.size() - done);
    if (count >= 0) {
      done += static_cast<size_t>(count);
    } else if (errno != EINTR) {
      status = Error("write");
      break;
    }
  }
  waiting_.erase(0, done);
  return status;
}

absl::Status EventWriter::Close() {
  absl::Status status = Flush();
  if (fsync(fd_) != 0) status.Update(Error("fsync"));
  if (close(fd_) != 0) status.Update(Error("close"));
  fd_ = -1;
  return status;
}

absl::Status EventWriter::Error(const char* call) const {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", path_, ": ", call));
}

}  // namespace ringmaster::tensorboard
