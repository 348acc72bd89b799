// RunLock: one coordinator a run directory. It is an flock(2) on <run_dir>/lock, which the kernel
// frees when its process ends, however that happens; the file stays.
//
// Thread safety: a plain value. A child that is forked without exec shares the lock.
#pragma once

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/unique_fd.h"

namespace ringmaster {

class RunLock {
 public:
  // FAILED_PRECONDITION: another coordinator has it; the message names its process and host.
  // Otherwise the code of the failed system call.
  static absl::StatusOr<RunLock> Take(const std::string& run_dir);

 private:
  explicit RunLock(UniqueFd file) : file_(std::move(file)) {}

  UniqueFd file_;  // holds the lock as long as it is open
};

}  // namespace ringmaster
