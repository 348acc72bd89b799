// What former writers left in a directory of event files, for the one that goes on.
//
// Thread safety: a function on the file system; nobody else writes to the directory meanwhile.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"

namespace ringmaster::tensorboard {

// The names of the event files in `directory`, as TensorBoard takes them, in its order. The code of
// the failed system call.
absl::StatusOr<std::vector<std::string>> ListEventFiles(const std::string& directory);

struct EventHistory {
  // The largest time in a file's name, in seconds since 1970; a later file needs a larger one to
  // be read after it. -1: there are no files.
  int64_t last_file_time = -1;
  std::unordered_map<std::string, int64_t> last_steps;  // by tag
  std::string note;  // what was torn or damaged, for the log; empty if nothing
};

// Reads all event files in `directory`. What a crash has torn off the end of the last one is cut
// off, and all that was read is on disk afterwards. A damaged file is left as it is: TensorBoard
// shows what comes before the damage, and only that is counted here. Memory: one event. The code of
// the failed system call.
absl::StatusOr<EventHistory> ReadEventHistory(const std::string& directory);

}  // namespace ringmaster::tensorboard
