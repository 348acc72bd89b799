#include "coordinator/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"

namespace ringmaster {
namespace {

constexpr size_t kMaxOwnerBytes = 320;  // a pid, a host name (at most 64 on Linux) and words

absl::Status Failed(const char* what, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot ", what, " ", path));
}

std::string ThisProcess() {
  char host[256] = "";
  if (gethostname(host, sizeof host - 1) != 0) host[0] = '\0';
  return absl::StrCat("pid ", getpid(), " on host ", host);
}

// Empty if the owner has not written it yet.
std::string Owner(int fd) {
  std::string owner(kMaxOwnerBytes, '\0');
  const ssize_t count = pread(fd, owner.data(), owner.size(), 0);
  owner.resize(count > 0 ? static_cast<size_t>(count) : 0);
  return owner;
}

}  // namespace

absl::StatusOr<RunLock> RunLock::Take(const std::string& run_dir) {
  const std::string path = run_dir + "/lock";
  UniqueFd file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (!file.valid()) return Failed("open", path);
  if (flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return Failed("lock", path);
    const std::string owner = Owner(file.get());
    return absl::FailedPreconditionError(
        absl::StrCat("run directory ", run_dir, " is in use by ",
                     owner.empty() ? "a coordinator that is just starting" : owner));
  }
  // The lock holds without this: a full disk costs the others no more than a name.
  const std::string owner = ThisProcess();
  if (ftruncate(file.get(), 0) == 0) {
    [[maybe_unused]] const ssize_t ignored = pwrite(file.get(), owner.data(), owner.size(), 0);
  }
  return RunLock(std::move(file));
}

}  // namespace ringmaster
