// HostProcess: a process of this host that is to be broken, held so that its number cannot come to
// mean another one.
//
// Thread safety: for one thread.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "common/unique_fd.h"

namespace ringmaster {

class HostProcess {
 public:
  // The process `pid`, if it lives and runs `program` (the file name of its argv[0]); otherwise
  // nothing: a number may belong to somebody else by now.
  static std::optional<HostProcess> Find(pid_t pid, const std::string& program);

  // The first process that was started by `parent` and runs `program`.
  static std::optional<HostProcess> FindChild(pid_t parent, const std::string& program);

  pid_t pid() const { return pid_; }
  pid_t parent() const { return parent_; }
  // Sends a signal. Returns whether the process was still there, and ours to signal.
  bool Signal(int signal) const;

 private:
  HostProcess(pid_t pid, pid_t parent, UniqueFd pidfd)
      : pid_(pid), parent_(parent), pidfd_(std::move(pidfd)) {}

  pid_t pid_;
  pid_t parent_;
  UniqueFd pidfd_;
};

}  // namespace ringmaster
