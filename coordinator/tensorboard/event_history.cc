#include "coordinator/tensorboard/event_history.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/unique_fd.h"
#include "coordinator/record.h"
#include "proto/tensorboard.pb.h"

namespace ringmaster::tensorboard {
namespace {

constexpr char kMark[] = "tfevents";

// The time in events.out.tfevents.<seconds>.<host>...; -1 in a name of another form.
int64_t FileTime(const std::string& name) {
  const size_t start = name.find(kMark) + sizeof kMark;  // and the dot
  int64_t seconds = 0;
  if (start >= name.size()) return -1;
  const std::string digits = name.substr(start, name.find('.', start) - start);
  return absl::SimpleAtoi(digits, &seconds) ? seconds : -1;
}

void Note(const std::string& text, std::string* note) {
  absl::StrAppend(note, note->empty() ? "" : "; ", text);
}

// Cuts a torn end off, and syncs: what was read may be in memory only, and must not go in a power
// cut that spares a later file. TensorBoard passes over a torn end where there is a later file, so
// a failure is no reason to stop.
void Settle(const std::string& path, const RecordReader& reader, std::string* note) {
  const UniqueFd file(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (reader.end() == RecordEnd::kTorn) {
    const bool cut =
        file.valid() && ftruncate(file.get(), static_cast<off_t>(reader.offset())) == 0;
    Note(absl::StrCat(cut ? "cut " : "could not cut ", reader.file_size() - reader.offset(),
                      " bytes of a torn event off ", path),
         note);
  }
  if (!file.valid() || fsync(file.get()) != 0) Note(absl::StrCat("could not sync ", path), note);
}

// Reads `*reader` to its end. `*steps`: the last step of each tag.
absl::Status ReadSteps(RecordReader* reader, std::unordered_map<std::string, int64_t>* steps) {
  std::string data;
  for (;;) {
    RM_ASSIGN_OR_RETURN(const bool more, reader->Next(&data));
    if (!more) break;
    Event event;
    if (!event.ParseFromString(data)) continue;  // of another program
    for (const Summary::Value& value : event.summary().value()) {
      const auto [last, first] = steps->emplace(value.tag(), event.step());
      last->second = std::max(last->second, event.step());
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ListEventFiles(const std::string& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator file(directory, error), end; !error && file != end;
       file.increment(error)) {
    std::string name = file->path().filename().string();
    if (name.find(kMark) != std::string::npos) names.push_back(std::move(name));
  }
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot read ", directory));
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<EventHistory> ReadEventHistory(const std::string& directory) {
  RM_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListEventFiles(directory));
  EventHistory history;
  for (const std::string& name : names) {
    history.last_file_time = std::max(history.last_file_time, FileTime(name));
    const std::string path = absl::StrCat(directory, "/", name);
    RM_ASSIGN_OR_RETURN(RecordReader reader, RecordReader::Open(path));
    RM_RETURN_IF_ERROR(ReadSteps(&reader, &history.last_steps));
    if (reader.end() == RecordEnd::kDamaged) {
      Note(absl::StrCat(path, " is damaged at byte ", reader.offset(),
                        ": TensorBoard shows nothing of it after that"),
           &history.note);
    }
    // The others were settled by the writers that came after them.
    if (name == names.back()) Settle(path, reader, &history.note);
  }
  return history;
}

}  // namespace ringmaster::tensorboard
