// What the end of a process means to the agent of its node, and when the process is started anew.
//
// Pure decisions: time comes as an argument. Thread safety: plain values.
#pragma once

#include "absl/time/time.h"
#include "common/subprocess.h"

namespace ringmaster {

// The values are the exit codes of `ringmaster-worker process`.
enum class ProcessEnd {
  kFinished = 0,       // the run ended well
  kFailed = 1,         // or by a signal: started anew
  kMisconfigured = 2,  // asked for what it cannot do: another start would not help
  kRunIsOver = 3,      // the run ended badly or goes on without this process
  kRespawn = 4,        // it cannot go on in this process; its state is in the vault: started anew
  kGaveUp = 5,         // it could not reach the coordinator within --join-timeout
};

// A code that is not in the list counts as kFailed. So do 130 and 143 of a process that somebody
// else than the agent told to leave: the agent keeps its processes alive until it is told itself.
ProcessEnd MeaningOf(const ExitStatus& status);

// How long one process waits between its lives. Only lives that came to nothing make it wait: it is
// killed as often as it likes as long as it trains in between.
class RestartPolicy {
 public:
  struct Options {
    absl::Duration first_wait = absl::Milliseconds(100);
    absl::Duration longest_wait = absl::Seconds(5);
    absl::Duration long_life = absl::Seconds(10);
  };

  RestartPolicy() : RestartPolicy(Options()) {}
  explicit RestartPolicy(Options options) : options_(options) {}

  // A life from `start` to `end` is over; `trained`: it took part in a step. Returns how long the
  // next one is to wait: not at all after the first failure, then first_wait, doubled with each
  // further life that was shorter than long_life and came to nothing. A kRespawn is asked for by
  // the process in good order: it waits never and counts as nothing.
  absl::Duration LifeEnded(ProcessEnd how, absl::Time start, absl::Time end, bool trained);

  // Lives in a row that were short and came to nothing.
  int futile_lives() const { return futile_lives_; }

 private:
  Options options_;
  int futile_lives_ = 0;
};

}  // namespace ringmaster
