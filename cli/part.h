// One of the programs that `ringmaster train` starts: watched, started again when it dies, pressed
// to end when its time is up.
//
// Thread safety: for one thread.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/subprocess.h"

namespace ringmaster {

// Whether a program died, rather than ended for a reason of its own: our programs end with 0, with
// 1 (failure) or 2 (wrong input) after saying why, or with 128 + n when signal n told them to stop.
bool Died(const ExitStatus& status);

// How often a program may die in a row. Pure: time comes as an argument.
class DeathCount {
 public:
  static constexpr int kTooMany = 5;
  static constexpr absl::Duration kLongLife = absl::Seconds(10);

  // It got as far as it had to: what comes next is another row.
  void Ready() { deaths_ = 0; }
  // A life that began at `start` ended at `end`. Returns whether another one may begin. After a
  // life of kLongLife the count starts over.
  bool MayStartAgain(absl::Time start, absl::Time end);
  int deaths() const { return deaths_; }

 private:
  int deaths_ = 0;
};

class Part {
 public:
  // `name`: for messages, as "the coordinator".
  explicit Part(std::string name) : name_(std::move(name)) {}

  // Starts it, or starts it again after its end was taken. Codes: those of Child::Start.
  absl::Status Start(const ChildOptions& options);
  // Its end, once for each life.
  std::optional<ExitStatus> TakeEnd();
  // Whether nothing is left to take: it ended, or never began.
  bool done() const { return !child_; }
  bool ever_started() const { return started_ != absl::InfinitePast(); }
  // Becomes readable at its end; -1 when done.
  int pidfd() const { return child_ ? child_->pidfd() : -1; }
  // How the last life ended; a good end if there was none.
  const ExitStatus& last_end() const { return last_end_; }

  // Logs that it died, and whether it is started again, which is the answer.
  bool MayStartAgain();
  void Ready() { deaths_.Ready(); }

  // Tells it to end, with `signal`, and kills it when it takes more than `grace`.
  void Tell(int signal, absl::Duration grace);
  // Whether it was told: its exit status then says nothing new.
  bool told() const { return told_; }
  // Tells it by SIGTERM at `time`, unless it was to end earlier anyway.
  void EndBy(absl::Time time, absl::Duration grace);
  void Kill();
  // Does what is due now; next_press() is when something is.
  void Press();
  absl::Time next_press() const;

 private:
  const std::string name_;
  std::optional<Child> child_;
  absl::Time started_ = absl::InfinitePast();
  ExitStatus last_end_;
  DeathCount deaths_;
  bool told_ = false;
  absl::Duration grace_;
  absl::Time terminate_at_ = absl::InfiniteFuture();
  absl::Time kill_at_ = absl::InfiniteFuture();
};

}  // namespace ringmaster
