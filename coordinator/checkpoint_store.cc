#include "coordinator/checkpoint_store.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "spdlog/spdlog.h"

namespace ringmaster {
namespace {

constexpr std::string_view kExtension = ".safetensors";

absl::Status Failed(const char* what, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot ", what, " ", path));
}

absl::Status MakeDirectory(const std::string& directory) {
  if (mkdir(directory.c_str(), 0777) == 0) {
    const std::string parent = std::filesystem::absolute(directory).parent_path();
    return SyncDirectory(parent);
  }
  return errno == EEXIST ? absl::OkStatus() : Failed("make", directory);
}

absl::StatusOr<std::vector<std::string>> List(const std::string& directory) {
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(opendir(directory.c_str()), closedir);
  if (listing == nullptr) return Failed("read", directory);
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = readdir(listing.get())) names.push_back(entry->d_name);
  if (errno != 0) return Failed("read", directory);
  return names;
}

// Whether WriteFileAtomically made `file_name` on its way to a checkpoint.
bool IsTemporary(std::string_view file_name) {
  const size_t end = file_name.find(kExtension);
  return end != std::string_view::npos && file_name.ends_with(".tmp") &&
         CheckpointName::Parse(file_name.substr(0, end + kExtension.size())).has_value();
}

bool ByName(const CheckpointFile& a, const CheckpointFile& b) { return a.name < b.name; }

// Takes "<prefix><digits>" off the front of `text`.
template <typename Integer>
bool TakeNumber(std::string_view prefix, std::string_view* text, Integer* value) {
  if (!text->starts_with(prefix)) return false;
  text->remove_prefix(prefix.size());
  const auto [end, error] = std::from_chars(text->begin(), text->end(), *value);
  text->remove_prefix(end - text->begin());
  return error == std::errc();
}

CheckpointName NameOf(const Checkpoint& checkpoint) {
  return {checkpoint.epoch(), checkpoint.step(), checkpoint.generation};
}

}  // namespace

std::string CheckpointName::FileName() const {
  return absl::StrFormat("e%04d-s%05d-g%d.safetensors", epoch, step, generation);
}

std::optional<CheckpointName> CheckpointName::Parse(std::string_view file_name) {
  CheckpointName name;
  std::string_view rest = file_name;
  if (!TakeNumber("e", &rest, &name.epoch) || !TakeNumber("-s", &rest, &name.step) ||
      !TakeNumber("-g", &rest, &name.generation) || name.FileName() != file_name) {
    return std::nullopt;
  }
  return name;
}

std::vector<std::string> ToDelete(const std::vector<CheckpointFile>& files, int keep) {
  std::vector<CheckpointFile> newest_first = files;
  std::sort(newest_first.rbegin(), newest_first.rend(), ByName);
  std::vector<std::string> names;
  int kept = 0;
  for (const CheckpointFile& file : newest_first) {
    if (!file.verified.ok()) continue;
    if (kept >= keep) names.push_back(file.name.FileName());
    if (file.registered) ++kept;
  }
  return names;
}

absl::StatusOr<std::unique_ptr<CheckpointStore>> CheckpointStore::Open(Options options) {
  auto store = std::unique_ptr<CheckpointStore>(new CheckpointStore(std::move(options)));
  RM_RETURN_IF_ERROR(store->Scan());
  store->writer_ = std::thread([store = store.get()] { store->WriteAll(); });
  return store;
}

CheckpointStore::~CheckpointStore() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  if (writer_.joinable()) writer_.join();
}

absl::Status CheckpointStore::Scan() {
  RM_RETURN_IF_ERROR(MakeDirectory(directory()));
  RM_ASSIGN_OR_RETURN(const std::vector<std::string> names, List(directory()));
  for (const std::string& file_name : names) {
    const std::string path = absl::StrCat(directory(), "/", file_name);
    if (IsTemporary(file_name) && unlink(path.c_str()) != 0) return Failed("remove", path);
    const std::optional<CheckpointName> name = CheckpointName::Parse(file_name);
    if (!name.has_value()) continue;
    const auto checkpoint = Load(*name);
    Record({*name, checkpoint.ok() ? checkpoint->position : 0, checkpoint.status()});
  }
  return absl::OkStatus();
}

void CheckpointStore::Write(Checkpoint checkpoint, Kind kind, Done done) {
  MutexLock lock(&mutex_);
  if (!waiting_.empty() && waiting_.back().kind == Kind::kPeriodic) {
    superseded_.push_back(std::move(waiting_.back().done));
    waiting_.pop_back();
  }
  waiting_.push_back({std::move(checkpoint), kind, std::move(done)});
  changed_.NotifyAll();
}

void CheckpointStore::WriteAll() {
  for (;;) {
    std::vector<Done> superseded;
    std::optional<Job> job;
    {
      MutexLock lock(&mutex_);
      while (waiting_.empty() && superseded_.empty() && !stopping_) changed_.Wait(&mutex_);
      superseded.swap(superseded_);
      if (!waiting_.empty()) {
        job = std::move(waiting_.front());
        waiting_.pop_front();
      } else if (superseded.empty()) {
        return;
      }
    }
    for (const Done& done : superseded) {
      done(absl::CancelledError("superseded by a newer checkpoint while this one waited"));
    }
    if (!job.has_value()) continue;
    const absl::StatusOr<std::string> path = WriteAndVerify(job->checkpoint);
    job->done(path);
    if (path.ok()) DeleteOld();
  }
}

absl::StatusOr<std::string> CheckpointStore::WriteAndVerify(const Checkpoint& checkpoint) {
  RM_ASSIGN_OR_RETURN(const std::string bytes, EncodeCheckpoint(checkpoint));
  // Before anything is written: a state that does not fit its digest leaves no file behind.
  RM_RETURN_IF_ERROR(DecodeCheckpoint(bytes).status());
  const CheckpointName name = NameOf(checkpoint);
  const std::string path = PathOf(name);
  RM_RETURN_IF_ERROR(WriteFileAtomically(path, bytes));
  RM_ASSIGN_OR_RETURN(const std::string read, ReadFile(path));
  absl::Status verified;
  if (read != bytes) {
    verified = absl::DataLossError(absl::StrCat(
        path, ": what is read back is not what was written; check the disk and its file system"));
  }
  Record({name, checkpoint.position, verified});
  if (!verified.ok()) return verified;
  return path;
}

absl::StatusOr<Checkpoint> CheckpointStore::Load(const CheckpointName& name) const {
  const std::string path = PathOf(name);
  auto checkpoint = LoadCheckpoint(path);
  if (checkpoint.ok() && NameOf(*checkpoint) != name) {
    return absl::DataLossError(absl::StrCat(path, ": it holds what belongs into ",
                                            NameOf(*checkpoint).FileName(),
                                            "; was it renamed or copied?"));
  }
  return checkpoint;
}

void CheckpointStore::Record(CheckpointFile file) {
  MutexLock lock(&mutex_);
  const auto place = std::lower_bound(files_.begin(), files_.end(), file, ByName);
  if (place != files_.end() && place->name == file.name) {
    *place = std::move(file);
  } else {
    files_.insert(place, std::move(file));
  }
}

void CheckpointStore::DeleteOld() {
  for (const std::string& file_name : ToDelete(files(), options_.keep)) {
    const CheckpointName name = *CheckpointName::Parse(file_name);
    const std::string path = PathOf(name);
    if (unlink(path.c_str()) != 0 && errno != ENOENT) {
      spdlog::warn("{}", std::string(Failed("delete the old checkpoint", path).message()));
      continue;
    }
    MutexLock lock(&mutex_);
    std::erase_if(files_, [&](const CheckpointFile& file) { return file.name == name; });
  }
}

absl::StatusOr<CheckpointStore::Loaded> CheckpointStore::LoadNewest(
    const Predicate& usable, std::vector<std::string>* notes) {
  notes->clear();
  std::vector<CheckpointFile> candidates = files();
  for (auto file = candidates.rbegin(); file != candidates.rend(); ++file) {
    if (file->verified.ok()) {
      // It may have changed since it was verified.
      auto checkpoint = Load(file->name);
      file->verified = checkpoint.status();
      if (!checkpoint.ok()) {
        Record(*file);
      } else if (usable == nullptr || usable(checkpoint->generation, checkpoint->position)) {
        return Loaded{*std::move(checkpoint), PathOf(file->name)};
      } else {
        notes->push_back(absl::StrCat(PathOf(file->name), ": it is not one this run goes on from"));
        continue;
      }
    }
    notes->push_back(std::string(file->verified.message()));
  }
  return absl::NotFoundError(absl::StrCat("there is no usable checkpoint in ", directory(),
                                          notes->empty() ? "" : ": ", absl::StrJoin(*notes, "; ")));
}

std::vector<CheckpointFile> CheckpointStore::files() const {
  std::vector<CheckpointFile> files;
  {
    MutexLock lock(&mutex_);
    files = files_;
  }
  for (CheckpointFile& file : files) {
    file.registered =
        file.verified.ok() && (options_.registered == nullptr ||
                               options_.registered(file.name.generation, file.position));
  }
  return files;
}

std::string CheckpointStore::PathOf(const CheckpointName& name) const {
  return absl::StrCat(directory(), "/", name.FileName());
}

}  // namespace ringmaster
