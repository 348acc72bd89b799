// Run: one training run as the coordinator leads it, from the first worker to the report.
//
// Everything that happens (a message, a stream's end, a state) is posted by gRPC's threads and
// handled, in order, on the thread that calls Advance(): no decision needs a lock, and a slow disk
// holds up nobody's stream. Time is passed in.
//
// Thread safety: Advance(), Begin() and Stop() are for the thread that leads; the rest is safe from
// any.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/model.h"
#include "common/mutex.h"
#include "coordinator/audit.h"
#include "coordinator/key_value_table.h"
#include "coordinator/mailbox.h"
#include "coordinator/membership.h"
#include "coordinator/peer.h"
#include "coordinator/report.h"
#include "coordinator/run_outputs.h"
#include "coordinator/state_store.h"
#include "proto/training.pb.h"

namespace ringmaster {

struct RunOptions {
  std::string run_id;
  uint64_t incarnation = 0;  // of this coordinator
  TrainingConfig config;
  ModelSpec model;
  MembershipOptions membership;
  absl::Duration heartbeat_interval = absl::Milliseconds(500);
  // Backstop for a collective: lost workers are noticed long before.
  absl::Duration communicator_timeout = absl::Seconds(60);
  // How long the workers may take to hear that the run is over.
  absl::Duration farewell = absl::Milliseconds(1500);
};

class Run {
 public:
  Run(RunOptions options, absl::Time now);

  // ---- for the thread that leads

  // From now on results go to `outputs`. Before the first Advance().
  void Begin(std::unique_ptr<RunOutputs> outputs);
  // Handles what was posted and decides what time brings. Returns the exit code when the run is
  // over and everybody has heard of it.
  std::optional<int> Advance(absl::Time now);
  // Readable when Advance() has something to do; call it some ten times a second besides.
  int wake_fd() const { return mailbox_.fd(); }
  // Ends the run: somebody sent us `signal`.
  void Stop(int signal);

  // ---- for the service

  // A message has come; the peer reads on when it is handled.
  void OnMessage(PeerPtr peer, WorkerMessage message);
  // The peer's stream has ended.
  void OnClosed(PeerPtr peer);
  // A whole state has come. `reply` is called once, from any thread: OK when it is kept,
  // FAILED_PRECONDITION for an old generation, INVALID_ARGUMENT where none was due.
  void OnState(StoredStatePtr state, std::function<void(absl::Status)> reply);

  // FAILED_PRECONDITION: another run (an empty `run_id` is any), or not the current generation.
  absl::Status CheckRun(const std::string& run_id) const;
  absl::Status CheckGeneration(const std::string& run_id, uint64_t generation) const;
  RunStatus status() const;
  const std::string& run_id() const { return options_.run_id; }
  const RunOptions& options() const { return options_; }
  KeyValueTable& keys() { return keys_; }
  const StateStore& states() const { return states_; }

 private:
  // What the run knows of a stream that has said hello.
  struct Session {
    PeerPtr peer;
    MemberId member = 0;
  };
  struct Ending {
    int exit_code = 0;
    absl::Time leave_at;
  };

  void HandleMessage(const PeerPtr& peer, const WorkerMessage& message);
  void HandleHello(const PeerPtr& peer, const WorkerMessage& message);
  absl::Status Handle(const Session& session, const WorkerMessage& message);
  absl::Status HandleRecords(const Session& session, const StepRecords& records);
  absl::Status CheckEnvelope(const WorkerMessage& message) const;
  void HandleClosed(const PeerPtr& peer);
  absl::Status HandleState(const StoredStatePtr& state);
  void Refuse(const PeerPtr& peer, const std::string& who, const absl::Status& status);

  void Decide();
  void StartGeneration();
  void Conclude();
  absl::Status CheckResult() const;
  void End(RunOutcome outcome, int exit_code, const std::string& reason);
  void CloseLost();
  void Publish();
  void Send(const PeerPtr& peer, CoordinatorMessage message);

  const RunOptions options_;
  Mailbox mailbox_;
  KeyValueTable keys_;
  StateStore states_;

  // Of the thread that leads.
  absl::Time now_;
  Membership membership_;
  Audit audit_;
  RunReport report_;
  std::unique_ptr<RunOutputs> outputs_;
  std::map<Peer*, Session> sessions_;
  MemberId last_member_ = 0;
  std::string logged_reason_;
  int refusals_ = 0;
  std::optional<Ending> ending_;

  mutable Mutex mutex_;
  RunStatus published_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ringmaster
