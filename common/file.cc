#include "common/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/unique_fd.h"

namespace ringmaster {
namespace {

constexpr size_t kReadChunk = size_t{1} << 20;

absl::Status Failed(const char* what, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot ", what, " ", path));
}

absl::Status TooLarge(const std::string& path, uint64_t max_bytes) {
  return absl::ResourceExhaustedError(
      absl::StrCat(path, " has more than ", max_bytes, " bytes, the most that is read"));
}

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// A new file beside `path`; its name goes to `*name`.
absl::StatusOr<UniqueFd> CreateBeside(const std::string& path, std::string* name) {
  for (int attempt = 0;; ++attempt) {
    *name = absl::StrCat(path, ".", getpid(), "-", attempt, ".tmp");
    const int fd = open(name->c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0) return UniqueFd(fd);
    // Another thread's, or left by a process that died and whose number came round again.
    if (errno != EEXIST) return Failed("write", path);
  }
}

absl::Status WriteAndSync(UniqueFd file, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t count = write(file.get(), bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Failed("write", path);
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  // A full network disk may show only when the file is closed.
  if (fsync(file.get()) != 0 || file.Close() != 0) return Failed("write", path);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes) {
  const UniqueFd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) return Failed("read", path);
  struct stat info;
  if (fstat(file.get(), &info) != 0) return Failed("read", path);
  if (S_ISREG(info.st_mode) && static_cast<uint64_t>(info.st_size) > max_bytes) {
    return TooLarge(path, max_bytes);
  }
  // The size is a hint only: /proc says 0, and the file may grow meanwhile. With one byte more than
  // it there is room to meet the end.
  std::string bytes(S_ISREG(info.st_mode) ? static_cast<size_t>(info.st_size) + 1 : 0, '\0');
  for (size_t filled = 0;;) {
    if (filled == bytes.size()) bytes.resize(filled + kReadChunk);
    const ssize_t count = read(file.get(), bytes.data() + filled, bytes.size() - filled);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Failed("read", path);
    filled += static_cast<size_t>(count);
    if (filled > max_bytes) return TooLarge(path, max_bytes);
    if (count == 0) {
      bytes.resize(filled);
      return bytes;
    }
  }
}

absl::Status WriteFileAtomically(const std::string& path, std::string_view bytes) {
  std::string temporary;
  RM_ASSIGN_OR_RETURN(UniqueFd file, CreateBeside(path, &temporary));
  absl::Status status = WriteAndSync(std::move(file), bytes, path);
  if (status.ok() && std::rename(temporary.c_str(), path.c_str()) != 0) {
    status = Failed("write", path);
  }
  if (!status.ok()) {
    unlink(temporary.c_str());
    return status;
  }
  return SyncDirectory(DirectoryOf(path));
}

absl::Status SyncDirectory(const std::string& directory) {
  const UniqueFd fd(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0) return Failed("sync", directory);
  // Some file systems cannot sync a directory; they say so with EINVAL.
  if (fsync(fd.get()) != 0 && errno != EINVAL) return Failed("sync", directory);
  return absl::OkStatus();
}

}  // namespace ringmaster
