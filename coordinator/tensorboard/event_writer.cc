#include "coordinator/tensorboard/event_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
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
  return error ? absl::ErrnoToStatus(error.value(), absl::StrCat("cannot create ", directory))
               : absl::OkStatus();
}

// Later than all former ones, also where the clock was set back: readers go by the names.
int64_t FileTime(const EventHistory& history, absl::Time now) {
  return std::max(absl::ToUnixSeconds(now), history.last_file_time + 1);
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
  RM_ASSIGN_OR_RETURN(const std::vector<std::string> former, ListEventFiles(directory));
  if (!former.empty()) {
    return absl::AlreadyExistsError(absl::StrCat(directory, " holds an event file already (",
                                                 former[0], "); choose another run directory"));
  }
  std::unique_ptr<EventWriter> writer(new EventWriter(directory, source, EventHistory(), now));
  RM_RETURN_IF_ERROR(writer->Flush());
  return writer;
}

absl::StatusOr<std::unique_ptr<EventWriter>> EventWriter::Resume(const std::string& directory,
                                                                 const EventSource& source,
                                                                 absl::Time now,
                                                                 std::string* note) {
  RM_RETURN_IF_ERROR(MakeDirectory(directory));
  RM_ASSIGN_OR_RETURN(const EventHistory history, ReadEventHistory(directory));
  *note = history.note;
  std::unique_ptr<EventWriter> writer(new EventWriter(directory, source, history, now));
  writer->Flush().IgnoreError();
  return writer;
}

EventWriter::EventWriter(const std::string& directory, const EventSource& source,
                         const EventHistory& history, absl::Time now)
    : directory_(directory),
      path_(absl::StrFormat("%s/events.out.tfevents.%010d.%s.%d.0", directory,
                            FileTime(history, now), source.host, source.pid)),
      written_at_(now) {
  for (const auto& [tag, step] : history.last_steps) tags_[tag].last_step = step;
  Event version;
  version.set_wall_time(WallTime(now));
  version.set_file_version(kFileVersion);
  Append(version);
}

EventWriter::~EventWriter() { Flush().IgnoreError(); }

absl::Status EventWriter::Add(int64_t step, Summary summary, absl::Time now) {
  if (waiting_.size() >= kMaxWaitingBytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        waiting_.size() >> 20, " MiB wait to be written to ", path_, ": values are dropped"));
  }
  DropOld(step, &summary);
  if (!summary.value().empty()) {
    for (Summary::Value& value : *summary.mutable_value()) {
      Tag& tag = tags_[value.tag()];
      tag.last_step = step;
      if (std::exchange(tag.described, true)) value.clear_metadata();
    }
    Event event;
    event.set_wall_time(WallTime(now));
    event.set_step(step);
    *event.mutable_summary() = std::move(summary);
    Append(event);
  }

  const bool due = now - written_at_ >= kWriteInterval || now < written_at_;
  if (!due && waiting_.size() < kWriteBytes) return absl::OkStatus();
  written_at_ = now;
  return Flush();
}

void EventWriter::DropOld(int64_t step, Summary* summary) const {
  auto* values = summary->mutable_value();
  const auto old = [&](const Summary::Value& value) {
    const auto tag = tags_.find(value.tag());
    return tag != tags_.end() && step <= tag->second.last_step;
  };
  values->erase(std::remove_if(values->begin(), values->end(), old), values->end());
}

void EventWriter::Append(const Event& event) { AppendRecord(event.SerializeAsString(), &waiting_); }

absl::Status EventWriter::Flush() {
  if (waiting_.empty()) return absl::OkStatus();
  if (!file_.valid()) {
    file_ = UniqueFd(open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    if (!file_.valid()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot create ", path_));
  }
  size_t done = 0;
  absl::Status status;
  while (done < waiting_.size()) {
    const ssize_t count = write(file_.get(), waiting_.data() + done, waiting_.size() - done);
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

absl::Status EventWriter::Sync() {
  RM_RETURN_IF_ERROR(Flush());
  if (fsync(file_.get()) != 0) return Error("fsync");
  return SyncDirectory(directory_);
}

absl::Status EventWriter::Close() {
  absl::Status status = Sync();
  if (file_.Close() != 0) status.Update(Error("close"));
  return status;
}

absl::Status EventWriter::Error(const char* call) const {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", path_, ": ", call));
}

}  // namespace ringmaster::tensorboard
