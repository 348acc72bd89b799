#include "cli/host_process.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/file.h"

namespace ringmaster {
namespace {

// By number, as older C libraries have no functions for them.
int PidfdOpen(pid_t pid) { return static_cast<int>(syscall(SYS_pidfd_open, pid, 0)); }
int PidfdSendSignal(int pidfd, int signal) {
  return static_cast<int>(syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0));
}

// Empty if there is no such process.
std::string ReadProc(pid_t pid, const char* name) {
  return ReadFile(absl::StrCat("/proc/", pid, "/", name)).value_or("");
}

// The file name of argv[0]; empty for a process that has ended and was not waited for yet.
std::string ProgramOf(pid_t pid) {
  const std::string command_line = ReadProc(pid, "cmdline");
  const std::string path = command_line.substr(0, command_line.find('\0'));
  return path.substr(path.rfind('/') + 1);
}

// 0 if there is no such process. proc(5): "pid (name) state ppid ..."; the name may hold anything.
pid_t ParentOf(pid_t pid) {
  const std::string stat = ReadProc(pid, "stat");
  const std::vector<std::string> fields =
      absl::StrSplit(stat.substr(stat.rfind(')') + 1), ' ', absl::SkipEmpty());
  int parent = 0;
  if (fields.size() < 2 || !absl::SimpleAtoi(fields[1], &parent)) return 0;
  return parent;
}

}  // namespace

std::optional<HostProcess> HostProcess::Find(pid_t pid, const std::string& program) {
  if (pid <= 1) return std::nullopt;
  // Opened before it is looked at: from then on the descriptor means this process or none.
  UniqueFd pidfd(PidfdOpen(pid));
  if (!pidfd.valid() || ProgramOf(pid) != program) return std::nullopt;
  const pid_t parent = ParentOf(pid);
  if (PidfdSendSignal(pidfd.get(), 0) != 0) return std::nullopt;
  return HostProcess(pid, parent, std::move(pidfd));
}

std::optional<HostProcess> HostProcess::FindChild(pid_t parent, const std::string& program) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    int pid = 0;
    if (!absl::SimpleAtoi(entry.path().filename().string(), &pid)) continue;
    if (ParentOf(pid) != parent) continue;
    if (auto found = Find(pid, program)) return found;
  }
  return std::nullopt;
}

bool HostProcess::Signal(int signal) const { return PidfdSendSignal(pidfd_.get(), signal) == 0; }

}  // namespace ringmaster
