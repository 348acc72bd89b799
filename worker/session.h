// Session: the one stream between a worker process and the coordinator, for the process's life.
//
// What the coordinator says is kept as state that other threads wait for; whatever ends the
// generation (an abort, the end of the run, a broken stream) also calls the interrupt at once, from
// gRPC's thread. Callback API: no thread of its own.
//
// Thread safety: all methods are safe from several threads.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/training.grpc.pb.h"

namespace ringmaster {

struct Assigned {
  uint64_t generation = 0;
  Assignment assignment;
};

class Session {
 public:
  // Opens the stream, says `hello`, and waits for the Welcome, at most `timeout`. The stub must
  // outlive the session. UNAVAILABLE: the coordinator cannot be reached, or did not answer. Other
  // codes: it refused this process, and says why.
  static absl::StatusOr<std::unique_ptr<Session>> Open(Training::StubInterface* stub,
                                                       const std::string& run_id,
                                                       const Hello& hello, absl::Duration timeout);
  // Ends the stream: says that nothing more comes, waits a little for the coordinator to close,
  // then cancels.
  ~Session();

  const Welcome& welcome() const { return welcome_; }
  const std::string& run_id() const { return run_id_; }

  // Waits for a place. ABORTED: the run ended first, with the coordinator's reason. UNAVAILABLE:
  // the stream broke.
  absl::StatusOr<Assigned> WaitForAssignment();

  // Calls `interrupt` (once, soon) when the generation is over; at once if it is over already. It
  // must not call the session. A null function takes it back and waits for a call in progress.
  void SetInterrupt(std::function<void()> interrupt);

  // OK while the generation goes on. ABORTED: the coordinator ended it, with its reason.
  // UNAVAILABLE: the stream broke.
  absl::Status health() const;

  // Queues a message; run id and generation are filled in. Dropped when the stream is broken.
  void Send(WorkerMessage message);

  // Waits until the coordinator has acknowledged `records` records. Errors as health();
  // DEADLINE_EXCEEDED after `timeout`.
  absl::Status WaitForAck(uint64_t records, absl::Duration timeout);

  // Waits for the end of the run. UNAVAILABLE: the stream broke; DEADLINE_EXCEEDED after `timeout`.
  absl::StatusOr<EndOfRun> WaitForEnd(absl::Duration timeout);

 private:
  class Stream;
  Session() = default;

  std::string run_id_;
  Welcome welcome_;
  std::unique_ptr<Stream> stream_;
};

}  // namespace ringmaster
