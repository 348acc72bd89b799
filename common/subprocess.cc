#include "common/subprocess.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"

extern char** environ;

namespace ringmaster {
namespace {

constexpr char kParentVariable[] = "RINGMASTER_PARENT_PID";
// Inherited descriptors are parked from here on before they get their numbers in the child, so
// that no number is overwritten while it is still to be copied.
constexpr int kParkedDescriptors = 200;

absl::Status ErrnoStatus(int error, const std::string& what) {
  return absl::ErrnoToStatus(error, what);
}

std::vector<std::string> ChildEnvironment(const ChildOptions& options) {
  std::vector<std::string> removed = options.unset_environment;
  for (const auto& [name, value] : options.set_environment) removed.push_back(name);
  removed.push_back(kParentVariable);
  std::vector<std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('='));
    if (std::find(removed.begin(), removed.end(), name) == removed.end()) {
      environment.push_back(text);
    }
  }
  for (const auto& [name, value] : options.set_environment) {
    environment.push_back(name + "=" + value);
  }
  environment.push_back(absl::StrCat(kParentVariable, "=", getpid()));
  return environment;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// posix_spawn's two records, freed with their scope.
class SpawnPlan {
 public:
  SpawnPlan() {
    posix_spawn_file_actions_init(&actions_);
    posix_spawnattr_init(&attributes_);
  }
  ~SpawnPlan() {
    posix_spawn_file_actions_destroy(&actions_);
    posix_spawnattr_destroy(&attributes_);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;

  // The child finds `from` (of this process) at `to`.
  absl::Status Inherit(int from, int to) {
    UniqueFd parked(fcntl(from, F_DUPFD_CLOEXEC, kParkedDescriptors));
    if (!parked.valid()) return ErrnoStatus(errno, absl::StrCat("cannot copy descriptor ", from));
    posix_spawn_file_actions_adddup2(&actions_, parked.get(), to);
    parked_.push_back(std::move(parked));
    return absl::OkStatus();
  }

  void UseDefaults(const ChildOptions& options) {
    posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (!options.working_directory.empty()) {
      posix_spawn_file_actions_addchdir_np(&actions_, options.working_directory.c_str());
    }
    sigset_t none;
    sigset_t all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes_, &none);
    posix_spawnattr_setsigdefault(&attributes_, &all);
    posix_spawnattr_setpgroup(&attributes_, 0);
    const int group = options.own_group ? POSIX_SPAWN_SETPGROUP : 0;
    posix_spawnattr_setflags(
        &attributes_, static_cast<short>(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | group));
  }

  absl::StatusOr<pid_t> Spawn(const ChildOptions& options) {
    std::vector<std::string> argv = options.argv;
    std::vector<std::string> environment = ChildEnvironment(options);
    pid_t pid = -1;
    const int error = posix_spawn(&pid, argv[0].c_str(), &actions_, &attributes_,
                                  Pointers(argv).data(), Pointers(environment).data());
    if (error != 0) return ErrnoStatus(error, "cannot start " + argv[0]);
    return pid;
  }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
  std::vector<UniqueFd> parked_;
};

void SetNonBlocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

int PidfdOpen(pid_t pid) { return static_cast<int>(syscall(SYS_pidfd_open, pid, 0)); }

// Appends what can be read now. Returns false at the end of the stream.
bool Drain(int fd, std::string* text) {
  char buffer[1 << 14];
  for (;;) {
    const ssize_t count = read(fd, buffer, sizeof buffer);
    if (count > 0) {
      text->append(buffer, static_cast<size_t>(count));
    } else if (count == 0) {
      return false;
    } else if (errno != EINTR) {
      return errno == EAGAIN;
    }
  }
}

}  // namespace

absl::StatusOr<Pipe> MakePipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "cannot make a pipe");
  return Pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

std::string SignalName(int signal) {
  const char* name = sigabbrev_np(signal);
  return name == nullptr ? absl::StrCat("signal ", signal) : absl::StrCat("SIG", name);
}

std::string ExitStatus::Describe() const {
  if (signal == 0) return absl::StrCat("exited with code ", code);
  return absl::StrCat("was killed by ", SignalName(signal), " (signal ", signal, ")");
}

absl::StatusOr<Child> Child::Start(const ChildOptions& options) {
  SpawnPlan plan;
  plan.UseDefaults(options);
  Child child;
  Pipe out;
  Pipe error;
  if (options.pipe_stdout) {
    RM_ASSIGN_OR_RETURN(out, MakePipe());
    RM_RETURN_IF_ERROR(plan.Inherit(out.write.get(), STDOUT_FILENO));
    SetNonBlocking(out.read.get());
  }
  if (options.pipe_stderr) {
    RM_ASSIGN_OR_RETURN(error, MakePipe());
    RM_RETURN_IF_ERROR(plan.Inherit(error.write.get(), STDERR_FILENO));
    SetNonBlocking(error.read.get());
  }
  for (const auto& [from, to] : options.descriptors) RM_RETURN_IF_ERROR(plan.Inherit(from, to));
  RM_ASSIGN_OR_RETURN(child.pid_, plan.Spawn(options));
  child.own_group_ = options.own_group;
  child.stdout_ = std::move(out.read);
  child.stderr_ = std::move(error.read);
  child.pidfd_ = UniqueFd(PidfdOpen(child.pid_));
  if (!child.pidfd_.valid()) return ErrnoStatus(errno, "cannot watch a child process");
  return child;
}

Child::Child(Child&& other) noexcept { *this = std::move(other); }

Child& Child::operator=(Child&& other) noexcept {
  if (this == &other) return *this;
  KillAndReap();
  pid_ = std::exchange(other.pid_, -1);
  own_group_ = other.own_group_;
  pidfd_ = std::move(other.pidfd_);
  stdout_ = std::move(other.stdout_);
  stderr_ = std::move(other.stderr_);
  status_ = other.status_;
  return *this;
}

Child::~Child() { KillAndReap(); }

void Child::KillAndReap() {
  if (pid_ < 0 || status_) return;
  Signal(SIGKILL);
  Wait();
}

std::optional<ExitStatus> Child::Poll() {
  if (status_ || pid_ < 0) return status_;
  int raw = 0;
  if (waitpid(pid_, &raw, WNOHANG) != pid_) return std::nullopt;
  status_ = WIFSIGNALED(raw) ? ExitStatus{0, WTERMSIG(raw)} : ExitStatus{WEXITSTATUS(raw), 0};
  return status_;
}

ExitStatus Child::Wait() {
  while (!Poll()) WaitReadable({pidfd_.get()}, absl::Seconds(1));
  return *status_;
}

std::optional<ExitStatus> Child::WaitFor(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!Poll() && absl::Now() < deadline) WaitReadable({pidfd_.get()}, deadline - absl::Now());
  return Poll();
}

void Child::Signal(int signal) {
  if (pid_ < 0 || Poll()) return;
  kill(own_group_ ? -pid_ : pid_, signal);
}

ExitStatus Child::Stop(absl::Duration grace) {
  Signal(SIGTERM);
  if (const auto status = WaitFor(grace)) return *status;
  Signal(SIGKILL);
  return Wait();
}

absl::StatusOr<Captured> RunAndCapture(const ChildOptions& options, absl::Duration timeout) {
  RM_ASSIGN_OR_RETURN(Child child, Child::Start(options));
  const absl::Time deadline = absl::Now() + timeout;
  Captured captured;
  bool out_open = child.stdout_fd() >= 0;
  bool error_open = child.stderr_fd() >= 0;
  for (;;) {
    // Looked at once a turn: if the child ends from here on its pidfd becomes readable.
    const bool ended = child.Poll().has_value();
    if (ended && !out_open && !error_open) break;
    if (absl::Now() >= deadline) {
      child.Signal(SIGKILL);
      return absl::DeadlineExceededError(
          absl::StrCat(options.argv[0], " did not end within ", absl::FormatDuration(timeout),
                       "; it was killed. Its output: ", captured.out, captured.error));
    }
    WaitReadable({out_open ? child.stdout_fd() : -1, error_open ? child.stderr_fd() : -1,
                  ended ? -1 : child.pidfd()},
                 deadline - absl::Now());
    if (out_open) out_open = Drain(child.stdout_fd(), &captured.out);
    if (error_open) error_open = Drain(child.stderr_fd(), &captured.error);
  }
  captured.status = child.Wait();
  return captured;
}

void DieWithParent(int signal) {
  const char* variable = std::getenv(kParentVariable);
  int parent = 0;
  if (variable == nullptr || !absl::SimpleAtoi(variable, &parent)) return;
  unsetenv(kParentVariable);
  prctl(PR_SET_PDEATHSIG, signal);
  // It may have died before the kernel was asked.
  if (getppid() != parent) _exit(ExitCodeForSignal(signal));
}

absl::StatusOr<StopSignals> StopSignals::Create() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&signals, signal);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  StopSignals result;
  result.fd_ = UniqueFd(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!result.fd_.valid()) return ErrnoStatus(errno, "cannot watch signals");
  return result;
}

int StopSignals::Next() {
  signalfd_siginfo info;
  const ssize_t count = read(fd_.get(), &info, sizeof info);
  return count == sizeof info ? static_cast<int>(info.ssi_signo) : 0;
}

void WaitReadable(const std::vector<int>& descriptors, absl::Duration timeout) {
  std::vector<pollfd> polled;
  for (const int fd : descriptors) {
    if (fd >= 0) polled.push_back(pollfd{fd, POLLIN, 0});
  }
  const int64_t milliseconds = std::clamp<int64_t>(
      absl::ToInt64Milliseconds(absl::Ceil(timeout, absl::Milliseconds(1))), 0, INT_MAX);
  poll(polled.data(), polled.size(), static_cast<int>(milliseconds));
}

void WaitReadable(std::initializer_list<int> descriptors, absl::Duration timeout) {
  WaitReadable(std::vector<int>(descriptors), timeout);
}

absl::StatusOr<std::string> ProgramBeside(const std::string& name) {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return absl::InternalError("cannot read /proc/self/exe: " + error.message());
  const auto path = self.parent_path() / name;
  if (access(path.c_str(), X_OK) != 0) {
    return absl::NotFoundError(absl::StrCat("there is no program ", path.string(),
                                            ": keep ringmaster, ringmaster-coordinator and "
                                            "ringmaster-worker in one directory"));
  }
  return path.string();
}

}  // namespace ringmaster
