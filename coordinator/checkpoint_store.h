// The checkpoints of a run: written by a thread of their own, verified after writing, thinned out,
// and found again.
//
// Files are named by position and generation, e0003-s00120-g5.safetensors, in one directory that
// belongs to one store at a time (the run directory's lock sees to that).
#pragma once

#include <compare>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint.h"
#include "common/mutex.h"

namespace ringmaster {

// What a file's name says, ordered by age.
struct CheckpointName {
  uint32_t epoch = 0;
  uint32_t step = 0;  // within the epoch; as Checkpoint::epoch() and step()
  uint64_t generation = 0;

  // "e0003-s00120-g5.safetensors": sorts as the position does (up to 9,999 epochs of 99,999 steps).
  std::string FileName() const;
  // Nothing if `file_name` is not one that FileName() gives.
  static std::optional<CheckpointName> Parse(std::string_view file_name);
  friend auto operator<=>(const CheckpointName&, const CheckpointName&) = default;
};

// A file of the directory.
struct CheckpointFile {
  CheckpointName name;
  uint64_t position = 0;   // meaningless when it is damaged
  absl::Status verified;   // why not, if it is damaged
  bool registered = true;  // the run knows of it and may go on from it
};

// Retention: the file names to delete so that the newest `keep` registered files are left. Nothing
// newer than those is deleted, and nothing that does not verify: a damaged file counts for nothing
// and is for people to look at. A pure function; `files` come in any order.
std::vector<std::string> ToDelete(const std::vector<CheckpointFile>& files, int keep);

// Thread safety: safe from several threads. Write() never waits for the disk.
class CheckpointStore {
 public:
  // Whether a checkpoint of this generation and position may be used, or counts.
  using Predicate = std::function<bool(uint64_t generation, uint64_t position)>;
  // Receives the path of the verified file, or why there is none.
  using Done = std::function<void(const absl::StatusOr<std::string>& path)>;

  struct Options {
    std::string directory;  // made if missing; its parent must be there
    int keep = 3;           // at least 1
    // Whether a verified file is registered; null: all are. Asked about every file, without a
    // lock, by the writer's thread when `done` of a new file has returned OK, and by files().
    Predicate registered = nullptr;
  };

  enum class Kind {
    kPeriodic,  // superseded by the next if it still waits then
    kRequired,  // written in any case: the last of a run, or one that somebody waits for
  };

  struct Loaded {
    Checkpoint checkpoint;
    std::string path;
  };

  // Looks through the directory: removes temporary files of processes that died, and verifies each
  // checkpoint. Codes: those of the file system.
  static absl::StatusOr<std::unique_ptr<CheckpointStore>> Open(Options options);
  // Writes what waits, then ends the thread.
  ~CheckpointStore();
  CheckpointStore(const CheckpointStore&) = delete;
  CheckpointStore& operator=(const CheckpointStore&) = delete;

  // Queues `checkpoint` for writing and returns. One is written at a time, and at most one of
  // kPeriodic waits: a newer one of either kind takes its place. `done` is called once, on the
  // writer's thread and without a lock, so it may call the store:
  //   OK         the file is on disk and has been read back and verified
  //   CANCELLED  superseded while it waited
  //   DATA_LOSS  digest or position do not fit the state, and nothing was written; or what was read
  //              back is not what was written
  //   others     of the file system (RESOURCE_EXHAUSTED: the disk is full) and of EncodeCheckpoint;
  //              older checkpoints are as they were and no temporary file is left
  // After an OK the oldest files are deleted, by ToDelete().
  void Write(Checkpoint checkpoint, Kind kind, Done done);

  // The checkpoint of the newest position that verifies and is `usable` (null: any). Each newer
  // file that is not used adds a line to `notes` that says why. NOT_FOUND: there is none; the
  // message has the notes.
  absl::StatusOr<Loaded> LoadNewest(const Predicate& usable, std::vector<std::string>* notes);

  // Oldest first.
  std::vector<CheckpointFile> files() const;
  const std::string& directory() const { return options_.directory; }

 private:
  struct Job {
    Checkpoint checkpoint;
    Kind kind;
    Done done;
  };

  explicit CheckpointStore(Options options) : options_(std::move(options)) {}

  absl::Status Scan();
  void WriteAll();  // the writer's thread
  absl::StatusOr<std::string> WriteAndVerify(const Checkpoint& checkpoint);
  // LoadCheckpoint of a file of the directory, which must hold what its name says.
  absl::StatusOr<Checkpoint> Load(const CheckpointName& name) const;
  void Record(CheckpointFile file);
  void DeleteOld();
  std::string PathOf(const CheckpointName& name) const;

  const Options options_;
  mutable Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<Job> waiting_ ABSL_GUARDED_BY(mutex_);       // oldest first; kPeriodic only at the end
  std::vector<Done> superseded_ ABSL_GUARDED_BY(mutex_);  // yet to be told
  std::vector<CheckpointFile> files_ ABSL_GUARDED_BY(mutex_);  // oldest first
  std::thread writer_;
};

}  // namespace ringmaster
