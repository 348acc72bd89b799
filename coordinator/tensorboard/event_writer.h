// EventWriter: the TensorBoard event file of one life of the coordinator. docs/tensorboard.md tells
// the byte format.
//
// A tag's steps only grow: a value whose step is not beyond the last one of its tag, in this file
// or in those of former writers, is dropped. So values may be added again, after a crash or when a
// step was computed again, and are there once.
//
// Events are kept in memory and written about once a second. A write that fails loses nothing: what
// is left of it is tried again later, so the file never has a torn record in its middle (readers
// would see nothing after it).
//
// Thread safety: none; for one thread at a time. Reads no clock.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/unique_fd.h"
#include "coordinator/tensorboard/event_history.h"
#include "proto/tensorboard.pb.h"

namespace ringmaster::tensorboard {

// Who writes: part of the file's name.
struct EventSource {
  std::string host;
  int pid = 0;

  static EventSource ThisProcess();
};

class EventWriter {
 public:
  // Creates `directory` as needed and in it events.out.tfevents.<unix seconds>.<host>.<pid>.0,
  // which starts with the file's version. There may be one writer a directory: ALREADY_EXISTS if it
  // holds an event file. Otherwise the code of the failed system call.
  static absl::StatusOr<std::unique_ptr<EventWriter>> Create(const std::string& directory,
                                                             const EventSource& source,
                                                             absl::Time now);

  // Goes on where former writers of `directory` stopped, in a new file that TensorBoard reads after
  // theirs; as Create if there are none. `*note` gets what a crash left torn or damaged, for the
  // log; empty if nothing. A disk that takes nothing now is no error: it is tried again with each
  // write. The code of the system call that failed to read.
  static absl::StatusOr<std::unique_ptr<EventWriter>> Resume(const std::string& directory,
                                                             const EventSource& source,
                                                             absl::Time now, std::string* note);
  // Writes what is left, as far as that goes.
  ~EventWriter();
  EventWriter(const EventWriter&) = delete;
  EventWriter& operator=(const EventWriter&) = delete;

  // Adds the values at `step`, as they were at `now`. Returns the error of a write that was due,
  // with the events kept: the code of the failed system call. RESOURCE_EXHAUSTED: so much is
  // waiting to be written that these values were dropped.
  absl::Status Add(int64_t step, Summary summary, absl::Time now);

  // Writes what is waiting. The code of the failed system call.
  absl::Status Flush();

  // Flushes, to the disk itself: what was added so far survives a power cut. The code of the failed
  // system call; a later OK then speaks of what was added since.
  absl::Status Sync();

  // Syncs and closes the file. Nothing may be added after. The code of the
  // failed system call; the file is closed in any case.
  absl::Status Close();

  const std::string& path() const { return path_; }

 private:
  struct Tag {
    int64_t last_step = 0;
    bool described = false;  // this file has its metadata
  };

  EventWriter(const std::string& directory, const EventSource& source, const EventHistory& history,
              absl::Time now);

  void Append(const Event& event);
  // Takes the values out that are not beyond the last step of their tag.
  void DropOld(int64_t step, Summary* summary) const;
  absl::Status Error(const char* call) const;

  const std::string directory_;
  const std::string path_;
  UniqueFd file_;          // opened by the first Flush that can
  absl::Time written_at_;  // or tried
  std::string waiting_;    // whole records, the first possibly begun
  std::unordered_map<std::string, Tag> tags_;
};

}  // namespace ringmaster::tensorboard
