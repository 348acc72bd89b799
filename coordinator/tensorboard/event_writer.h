// EventWriter: one TensorBoard event file. docs/tensorboard.md tells the byte format.
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
#include <unordered_set>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
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
  // Writes what is left, as far as that goes.
  ~EventWriter();
  EventWriter(const EventWriter&) = delete;
  EventWriter& operator=(const EventWriter&) = delete;

  // Adds the values at `step`, as they were at `now`. The steps of a tag must not go back. Returns
  // the error of a write that was due, with the events kept: the code of the failed system call.
  // RESOURCE_EXHAUSTED: so much is waiting to be written that these values were dropped.
  absl::Status Add(int64_t step, Summary summary, absl::Time now);

  // Writes what is waiting. The code of the failed system call.
  absl::Status Flush();

  // Flushes, to the disk itself, and closes the file. Nothing may be added after. The code of the
  // failed system call; the file is closed in any case.
  absl::Status Close();

  const std::string& path() const { return path_; }

 private:
  EventWriter(std::string path, int fd, absl::Time now);

  void Append(const Event& event);
  absl::Status Error(const char* call) const;

  const std::string path_;
  int fd_;
  absl::Time written_at_;                 // or tried
  std::string waiting_;                   // whole records, the first possibly begun
  std::unordered_set<std::string> tags_;  // whose metadata the file has
};

}  // namespace ringmaster::tensorboard
