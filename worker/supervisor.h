// Supervisor: watches the processes of a node, relays what they print, and finds out which of them
// failed first.
//
// One poll() loop, no thread. Thread safety: for one thread.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/subprocess.h"

namespace ringmaster {

// The failure that the others followed from.
struct ChildFailure {
  size_t index = 0;  // in the order of Add()
  pid_t pid = 0;
  ExitStatus status;
  std::vector<std::string> last_lines;  // of its output, at most kLastLines
};

struct SupervisorResult {
  bool all_ok = false;
  int stop_signal = 0;                // the signal that told us to stop, or 0
  std::optional<ChildFailure> cause;  // absent if all went well or all ended as a consequence
};

class Supervisor {
 public:
  static constexpr size_t kLastLines = 10;

  struct Options {
    // An exit code that means "ended because of another's failure".
    int consequence_code = 3;
    // After the first failure: how long the others may take to end by themselves before SIGTERM,
    // and then before SIGKILL.
    absl::Duration own_end = absl::Milliseconds(500);
    absl::Duration grace = absl::Seconds(3);
    // The same after a failure, where nothing is left to save: a process that hangs hears nothing,
    // and the run is to end within 5 s, of which 3 go to noticing the silence.
    absl::Duration failure_grace = absl::Milliseconds(500);
    // Name of child `index` in front of its lines.
    std::function<std::string(size_t)> label;
    // Where a line of child `index` goes; RelayLine unless a test wants it.
    std::function<void(const std::string& label, const std::string& line)> relay;
  };

  // Borrows the signals.
  Supervisor(StopSignals* signals, Options options);

  // Takes a child with piped output.
  void Add(Child child);
  // Runs until every child has ended. A stop signal is passed on as SIGTERM; a second one kills.
  SupervisorResult Run();

 private:
  struct Member {
    explicit Member(Child started) : child(std::move(started)) {}

    Child child;
    std::string partial[2];  // of stdout, stderr: the line that is not finished yet
    bool open[2] = {true, true};
    std::vector<std::string> last_lines;
    bool ended = false;
  };

  void ReadOutput(size_t index);
  // Takes the finished lines off the front of `text`.
  void TakeLines(size_t index, std::string* text);
  void TakeLine(size_t index, const std::string& line);
  void Reap(size_t index);
  void HandleSignals();
  // Tells the children that are left to end, when it is time.
  void Press();
  bool AllEnded() const;
  void SignalAll(int signal);

  StopSignals* const signals_;
  Options options_;
  std::vector<Member> members_;
  SupervisorResult result_;
  bool told_ = false;  // to end, by SIGTERM
  absl::Time terminate_at_ = absl::InfiniteFuture();
  absl::Time kill_at_ = absl::InfiniteFuture();
};

}  // namespace ringmaster
