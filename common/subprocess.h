// Child processes: started with posix_spawn, watched through a pidfd, ended with grace, and never
// left behind: a child that calls DieWithParent() first dies when the thread that started it does.
//
// Thread safety: a Child belongs to one thread. Start children before any other thread exists.
#pragma once

#include <sys/types.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/unique_fd.h"

namespace ringmaster {

// A pipe, close-on-exec at both ends. INTERNAL if there are no descriptors left.
struct Pipe {
  UniqueFd read;
  UniqueFd write;
};
absl::StatusOr<Pipe> MakePipe();

// How a process ended.
struct ExitStatus {
  int code = 0;    // exit code; meaningless when signal is not 0
  int signal = 0;  // the signal that killed it, or 0

  bool ok() const { return code == 0 && signal == 0; }
  // "exited with code 1", "was killed by SIGKILL (signal 9)".
  std::string Describe() const;
  friend bool operator==(const ExitStatus&, const ExitStatus&) = default;
};

struct ChildOptions {
  std::vector<std::string> argv;  // argv[0] is the path of the program
  std::vector<std::pair<std::string, std::string>> set_environment;
  std::vector<std::string> unset_environment;
  // Descriptors the child inherits: {number here, number there}. All others are closed on exec.
  std::vector<std::pair<int, int>> descriptors;
  bool pipe_stdout = false;  // otherwise inherited
  bool pipe_stderr = false;
  bool own_group = true;  // a process group of its own: a terminal's Ctrl-C does not reach it
  std::string working_directory;  // empty: the same
};

// A running or ended child. Its destructor kills it (SIGKILL, with its group) and waits.
class Child {
 public:
  // Standard input is /dev/null; signal handlers and mask are the defaults. NOT_FOUND: there is no
  // such program. Other codes: what posix_spawn or the pidfd failed with.
  static absl::StatusOr<Child> Start(const ChildOptions& options);
  Child(Child&& other) noexcept;
  Child& operator=(Child&& other) noexcept;
  ~Child();

  pid_t pid() const { return pid_; }
  // Becomes readable when the process ends.
  int pidfd() const { return pidfd_.get(); }
  // Read ends of the pipes; -1 if not asked for. Non-blocking.
  int stdout_fd() const { return stdout_.get(); }
  int stderr_fd() const { return stderr_.get(); }

  // The exit status if the process has ended. Does not block.
  std::optional<ExitStatus> Poll();
  // Waits for the end.
  ExitStatus Wait();
  // Waits for the end, at most `timeout`.
  std::optional<ExitStatus> WaitFor(absl::Duration timeout);
  // Sends `signal` to the process (to its whole group, if it has its own). No effect after its end.
  void Signal(int signal);
  // SIGTERM, `grace` to obey, SIGKILL; waits for the end.
  ExitStatus Stop(absl::Duration grace);

 private:
  Child() = default;
  void KillAndReap();

  pid_t pid_ = -1;
  bool own_group_ = false;
  UniqueFd pidfd_;
  UniqueFd stdout_;
  UniqueFd stderr_;
  std::optional<ExitStatus> status_;
};

// What a child wrote and how it ended; for short runs.
struct Captured {
  ExitStatus status;
  std::string out;  // of the pipes asked for
  std::string error;
};
// Starts a child, reads its pipes until it ends. DEADLINE_EXCEEDED: it was killed after `timeout`.
absl::StatusOr<Captured> RunAndCapture(const ChildOptions& options, absl::Duration timeout);

// For the first line of a child's main(): asks the kernel for `signal` when the process that
// started it (by Child::Start) ends, and exits at once if it has ended already. No effect in a
// process that was started otherwise.
void DieWithParent(int signal);

// The signals a program is asked to stop with, as a readable descriptor: blocks them for this
// thread (and those it starts).
class StopSignals {
 public:
  // SIGINT, SIGTERM and SIGHUP. INTERNAL if the kernel refuses.
  static absl::StatusOr<StopSignals> Create();
  int fd() const { return fd_.get(); }
  // The next signal that has arrived, or 0. Does not block.
  int Next();

 private:
  UniqueFd fd_;
};

// Waits until one of `descriptors` (negative ones are skipped) is readable or `timeout` is over.
void WaitReadable(std::initializer_list<int> descriptors, absl::Duration timeout);
void WaitReadable(const std::vector<int>& descriptors, absl::Duration timeout);

// The path of a program that lies beside this one. NOT_FOUND if it does not.
absl::StatusOr<std::string> ProgramBeside(const std::string& name);

// The exit code of a program that was asked to stop by `signal`: 130 for SIGINT, 143 for SIGTERM.
inline int ExitCodeForSignal(int signal) { return 128 + signal; }

// "SIGKILL" for 9; "signal 77" for one without a name.
std::string SignalName(int signal);

}  // namespace ringmaster
