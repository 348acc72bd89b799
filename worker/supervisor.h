// Supervisor: watches the processes of a node, relays what they print, starts those anew that were
// lost, and finds out how it all ended.
//
// One poll() loop, no thread: a child is always started from the thread that runs it. Thread
// safety: for one thread.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/subprocess.h"
#include "worker/restart_policy.h"

namespace ringmaster {

// A child that ended otherwise than well, and what follows from it.
struct ChildFailure {
  enum class Then {
    kRestart,    // it is started anew, in `wait`
    kNodeEnds,   // nobody can help it, and the others end with it
    kRunIsOver,  // the run had ended before
  };

  size_t index = 0;  // in the order of Add()
  pid_t pid = 0;
  ExitStatus status;
  std::vector<std::string> last_lines;  // of its output, at most kLastLines
  Then then = Then::kNodeEnds;
  absl::Duration wait = absl::ZeroDuration();
  int futile_lives = 0;  // in a row, this one included (RestartPolicy)
};

struct SupervisorResult {
  bool ok = false;      // the run ended well
  int stop_signal = 0;  // the signal that told us to stop, or 0
  std::optional<ChildFailure>
      cause;  // of a bad end (kNodeEnds), if it lies in a child of this node
};

class Supervisor {
 public:
  static constexpr size_t kLastLines = 10;

  struct Options {
    // Starts child `index` anew, with piped output. Absent: a child is not started a second time.
    std::function<absl::StatusOr<Child>(size_t)> restart;
    RestartPolicy::Options waits;
    // Whether child `index` took part in a step in this life; false unless given.
    std::function<bool(size_t)> trained;
    // Told of every failure of a child that nobody had told to end.
    std::function<void(const ChildFailure&)> on_failure;

    // When the run is over: how long the others may take to end by themselves before SIGTERM, after
    // a good end (they hear of it at the same time) and after a bad one.
    absl::Duration good_end = absl::Seconds(5);
    absl::Duration own_end = absl::Milliseconds(500);
    // How long they may take from SIGTERM to SIGKILL when a signal told us to stop ...
    absl::Duration grace = absl::Seconds(3);
    // ... and at the end of the run, where nothing is left to save: a process that hangs hears
    // nothing, and the run is to end within 5 s, of which 3 go to noticing the silence.
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
  // Runs until every child has ended and none is to be started anew: from the first that ends with
  // kFinished, kRunIsOver, kMisconfigured or kGaveUp on nothing is. A stop signal is passed on as
  // SIGTERM; a second one kills.
  SupervisorResult Run();

 private:
  // One child, through all of its lives.
  struct Member {
    Member(Child first, const RestartPolicy::Options& waits) : policy(waits) {
      Begin(std::move(first));
    }
    void Begin(Child begun);

    bool running() const { return child.has_value(); }
    bool waiting() const { return restart_at != absl::InfiniteFuture(); }

    std::optional<Child> child;
    absl::Time started;
    std::string partial[2];  // of stdout, stderr: the line that is not finished yet
    bool open[2] = {true, true};
    std::vector<std::string> last_lines;
    RestartPolicy policy;
    absl::Time restart_at = absl::InfiniteFuture();
  };

  void Wait();
  void ReadOutput(size_t index);
  // Takes the finished lines off the front of `text`.
  void TakeLines(size_t index, std::string* text);
  void TakeLine(size_t index, const std::string& line);
  void Reap(size_t index);
  // What follows from an end: either nothing is started anew from here on ...
  void OnEnd(size_t index, pid_t pid, const ExitStatus& status);
  void ConcludeRun(absl::Duration own_end);
  // ... or the child is, when its time has come.
  void OnFailure(size_t index, pid_t pid, const ExitStatus& status);
  void RestartWhenDue(size_t index);
  void HandleSignals();
  // Tells the children that are left to end, when it is time.
  void Press();
  bool AllEnded() const;
  void SignalAll(int signal);

  StopSignals* const signals_;
  Options options_;
  std::vector<Member> members_;
  SupervisorResult result_;
  bool over_ = false;  // how the run ended is settled
  bool told_ = false;  // to end, by SIGTERM
  absl::Time terminate_at_ = absl::InfiniteFuture();
  absl::Time kill_at_ = absl::InfiniteFuture();
};

}  // namespace ringmaster
