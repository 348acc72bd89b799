#include "coordinator/journal.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <set>
#include <string_view>
#include <system_error>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "coordinator/record.h"

namespace ringmaster {
namespace {

constexpr size_t kChecksumBytes = 4;
constexpr size_t kRecordOverhead = 16 + kChecksumBytes;
constexpr char kSuffix[] = ".log";

// What the first record of a segment is linked to.
std::string FirstLink() { return std::string(kChecksumBytes, '\0'); }

std::string Header(uint64_t segment) { return absl::StrCat("ringmaster journal 1 ", segment); }

// Each record starts with the checksum of the one before, so that one that is left out, doubled or
// of another file does not go unnoticed. `*link` becomes the checksum of this one.
void AppendLinked(const std::string& data, std::string* link, std::string* out) {
  AppendRecord(absl::StrCat(*link, data), out);
  *link = out->substr(out->size() - kChecksumBytes);
}

absl::Status Failed(const char* what, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot ", what, " ", path));
}

absl::Status Damaged(const std::string& path, uint64_t offset, const std::string& what) {
  return absl::DataLossError(absl::StrCat(
      path, " is damaged at byte ", offset, ": ", what,
      ". Nothing was changed. Restore the journal's directory from a copy, or move it away to "
      "start anew from the newest checkpoint"));
}

absl::Status WriteAt(int fd, std::string_view bytes, uint64_t offset, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t count = pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Failed("write", path);
    bytes.remove_prefix(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
  return absl::OkStatus();
}

std::string Name(uint64_t segment) { return absl::StrFormat("%08d%s", segment, kSuffix); }

// The numbers of the segments in a directory, and the files that a writer left when it died.
struct Listing {
  std::set<uint64_t> segments;
  std::vector<std::string> leftovers;
};

absl::StatusOr<Listing> List(const std::string& directory) {
  Listing listing;
  std::error_code error;
  for (std::filesystem::directory_iterator file(directory, error), end; !error && file != end;
       file.increment(error)) {
    const std::string name = file->path().filename().string();
    uint64_t number = 0;
    if (absl::EndsWith(name, ".tmp")) {
      listing.leftovers.push_back(file->path().string());
    } else if (absl::SimpleAtoi(name.substr(0, name.find('.')), &number) && name == Name(number)) {
      listing.segments.insert(number);
    }
  }
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot read ", directory));
  return listing;
}

absl::Status MakeDirectory(const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) {
    return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot create ", directory));
  }
  const std::filesystem::path absolute = std::filesystem::absolute(directory, error);
  return SyncDirectory(absolute.parent_path().string());
}

}  // namespace

// The whole records of a segment.
struct FileJournal::Segment {
  uint64_t number = 0;
  std::string path;
  std::vector<std::string> entries;  // the snapshot first; empty if not even that is whole
  uint64_t end = 0;                  // of the last of them, in bytes
  uint64_t file_size = 0;
  std::string link = FirstLink();
};

absl::StatusOr<FileJournal::Segment> FileJournal::ReadSegment(const std::string& directory,
                                                              uint64_t number) {
  Segment segment;
  segment.number = number;
  segment.path = absl::StrCat(directory, "/", Name(number));
  RM_ASSIGN_OR_RETURN(RecordReader reader, RecordReader::Open(segment.path));
  segment.file_size = reader.file_size();
  std::string data;
  for (bool header = true;; header = false) {
    RM_ASSIGN_OR_RETURN(const bool more, reader.Next(&data));
    if (!more) break;
    if (!absl::StartsWith(data, segment.link)) {
      return Damaged(segment.path, segment.end, "the record does not follow the one before it");
    }
    data.erase(0, kChecksumBytes);
    if (!header) {
      segment.entries.push_back(std::move(data));
    } else if (data != Header(number)) {
      return Damaged(segment.path, 0,
                     absl::StrCat("it starts with \"", absl::CEscape(data.substr(0, 64)),
                                  "\", not with \"", Header(number), "\""));
    }
    segment.end = reader.offset();
    segment.link = reader.checksum();
  }
  if (reader.end() == RecordEnd::kDamaged) {
    return Damaged(segment.path, segment.end, "the record does not match its checksum");
  }
  return segment;
}

absl::StatusOr<std::unique_ptr<FileJournal>> FileJournal::Open(const std::string& directory,
                                                               std::vector<std::string>* entries,
                                                               std::string* note) {
  entries->clear();
  note->clear();
  RM_RETURN_IF_ERROR(MakeDirectory(directory));
  RM_ASSIGN_OR_RETURN(const Listing listing, List(directory));
  std::unique_ptr<FileJournal> journal(new FileJournal(directory));
  if (listing.segments.empty()) {
    *entries = {std::string()};
    RM_RETURN_IF_ERROR(journal->StartSegment(*entries));
    return journal;
  }
  journal->newest_ = *listing.segments.rbegin();
  // A segment gets its name once it is on disk, so the newest is whole unless the disk lied.
  for (auto number = listing.segments.rbegin(); number != listing.segments.rend(); ++number) {
    RM_ASSIGN_OR_RETURN(Segment segment, ReadSegment(directory, *number));
    if (segment.entries.empty()) continue;
    RM_RETURN_IF_ERROR(journal->Continue(segment, note));
    *entries = std::move(segment.entries);
    return journal;
  }
  return Damaged(journal->Path(journal->newest_), 0, "it ends before its snapshot does");
}

absl::Status FileJournal::Continue(const Segment& segment, std::string* note) {
  file_ = UniqueFd(open(segment.path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file_.valid()) return Failed("open", segment.path);
  if (segment.file_size > segment.end) {
    if (ftruncate(file_.get(), static_cast<off_t>(segment.end)) != 0) {
      return Failed("cut the torn end off", segment.path);
    }
    *note = absl::StrCat("the last record of ", segment.path, " was torn by a crash: cut off ",
                         segment.file_size - segment.end, " bytes at byte ", segment.end,
                         ", which nobody was told were kept");
  }
  // What was read may be in memory only: the process that wrote it may have died before its sync.
  if (fsync(file_.get()) != 0) return Failed("sync", segment.path);
  if (segment.number < newest_) {
    absl::StrAppend(note, note->empty() ? "" : "; ", Path(newest_),
                    " has no whole snapshot: ", segment.path, " is used");
  }
  segment_ = segment.number;
  end_ = segment.end;
  count_ = segment.entries.size();
  link_ = segment.link;
  RemoveOthers();
  return absl::OkStatus();
}

absl::Status FileJournal::Commit() {
  if (pending_.empty()) return absl::OkStatus();
  if (broken_) return MoveToNewSegment();
  std::string bytes;
  std::string link = link_;
  for (const std::string& entry : pending_) AppendLinked(entry, &link, &bytes);
  absl::Status status = WriteAt(file_.get(), bytes, end_, Path(segment_));
  if (status.ok() && fdatasync(file_.get()) != 0) {
    // The kernel may have dropped the pages and call them clean: a second sync would promise what
    // is not there.
    broken_ = true;
    status = Failed("sync", Path(segment_));
  }
  if (!status.ok()) {
    // Whoever opens the file after a crash finds what is durable. If this fails, too, the next
    // write goes over it.
    [[maybe_unused]] const int ignored = ftruncate(file_.get(), static_cast<off_t>(end_));
    return status;
  }
  end_ += bytes.size();
  count_ += pending_.size();
  link_ = std::move(link);
  pending_.clear();
  return absl::OkStatus();
}

absl::Status FileJournal::Rotate(std::string snapshot) {
  return StartSegment({std::move(snapshot)});
}

absl::Status FileJournal::MoveToNewSegment() {
  RM_ASSIGN_OR_RETURN(Segment segment, ReadSegment(directory_, segment_));
  if (segment.entries.size() < count_) {
    return Damaged(segment.path, segment.end,
                   absl::StrCat(segment.entries.size(), " of ", count_, " entries are left"));
  }
  segment.entries.resize(count_);
  segment.entries.insert(segment.entries.end(), pending_.begin(), pending_.end());
  return StartSegment(segment.entries);
}

absl::Status FileJournal::StartSegment(const std::vector<std::string>& entries) {
  const uint64_t number = ++newest_;
  std::string link = FirstLink();
  std::string bytes;
  AppendLinked(Header(number), &link, &bytes);
  for (const std::string& entry : entries) AppendLinked(entry, &link, &bytes);

  absl::Status status = WriteFileAtomically(Path(number), bytes);
  UniqueFd file;
  if (status.ok()) {
    file = UniqueFd(open(Path(number).c_str(), O_WRONLY | O_CLOEXEC));
    if (!file.valid()) status = Failed("open", Path(number));
  }
  if (!status.ok()) {
    // If it has its name, Open may take it or not: nothing may be promised in the former one.
    broken_ = broken_ || access(Path(number).c_str(), F_OK) == 0;
    return status;
  }
  file_ = std::move(file);
  segment_ = number;
  end_ = bytes.size();
  count_ = entries.size();
  link_ = std::move(link);
  broken_ = false;
  pending_.clear();
  RemoveOthers();
  return absl::OkStatus();
}

void FileJournal::RemoveOthers() const {
  const absl::StatusOr<Listing> listing = List(directory_);
  if (!listing.ok()) return;
  for (const std::string& path : listing->leftovers) unlink(path.c_str());
  for (const uint64_t number : listing->segments) {
    if (number != segment_) unlink(Path(number).c_str());
  }
}

std::string FileJournal::Path(uint64_t number) const {
  return absl::StrCat(directory_, "/", Name(number));
}

absl::Status MemoryJournal::Commit() {
  RM_RETURN_IF_ERROR(failure_);
  std::vector<std::string>& disk = disk_ == Disk::kHonest ? durable_ : cached_;
  disk.insert(disk.end(), pending_.begin(), pending_.end());
  pending_.clear();
  return absl::OkStatus();
}

absl::Status MemoryJournal::Rotate(std::string snapshot) {
  RM_RETURN_IF_ERROR(failure_);
  durable_ = {std::move(snapshot)};
  cached_.clear();
  pending_.clear();
  return absl::OkStatus();
}

uint64_t MemoryJournal::size() const {
  uint64_t bytes = 0;
  for (const auto* entries : {&durable_, &cached_}) {
    for (const std::string& entry : *entries) bytes += kRecordOverhead + entry.size();
  }
  return bytes;
}

std::vector<std::string> MemoryJournal::Crash() {
  cached_.clear();
  pending_.clear();
  return durable_;
}

}  // namespace ringmaster
