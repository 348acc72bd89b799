// Run: one training run as the coordinator leads it, from the first worker to the report.
//
// Everything that happens (a message, a stream's end, a state) is posted by gRPC's threads and
// handled, in order, on the thread that calls Advance(): no decision needs a lock, and a slow disk
// holds up nobody's stream. Time is passed in.
//
// What must outlive this process is in RunState; whatever changes it is appended to the journal.
// Each turn of Advance() ends with one commit of the journal, and only then do the messages of that
// turn go out: nobody ever acts on, or is acknowledged, what a crash could take back. While the
// journal cannot be written, a generation that trains goes on, its records stay unacknowledged, and
// all that there is to say waits: no other generation begins.
//
// Thread safety: Advance(), Begin() and Stop() are for the thread that leads; the rest is safe from
// any.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/model.h"
#include "common/mutex.h"
#include "coordinator/journal.h"
#include "coordinator/key_value_table.h"
#include "coordinator/mailbox.h"
#include "coordinator/membership.h"
#include "coordinator/peer.h"
#include "coordinator/recovery.h"
#include "coordinator/report.h"
#include "coordinator/run_outputs.h"
#include "coordinator/run_state.h"
#include "coordinator/state_store.h"
#include "coordinator/step_clock.h"
#include "proto/training.pb.h"

namespace ringmaster {

struct RunOptions {
  uint64_t incarnation = 0;  // of this coordinator
  ModelSpec model;
  MembershipOptions membership;
  absl::Duration heartbeat_interval = absl::Milliseconds(500);
  // Backstop for a collective: lost workers are noticed long before.
  absl::Duration communicator_timeout = absl::Seconds(60);
  uint32_t checkpoint_every_steps = 0;                       // 0: not by this measure
  absl::Duration checkpoint_every_time = absl::Seconds(30);  // zero: not by this measure
  // How long the workers may take to hear that the run is over.
  absl::Duration farewell = absl::Milliseconds(1500);
  // How long they may take to stop at an agreed step and hand in their state when it is
  // interrupted.
  absl::Duration interruption = absl::Seconds(4);
};

// Where states go to outlive this process. Thread safety: for the thread that leads.
class StateWriter {
 public:
  virtual ~StateWriter() = default;
  // Writes `state` in its own time; a newer one may take the place of one that still waits, unless
  // it is `required`. `done` is called once, from any thread: the file it can be read back from.
  virtual void Write(StoredStatePtr state, bool required,
                     std::function<void(absl::StatusOr<std::string>)> done) = 0;
};

class Run {
 public:
  // Leads the run of `state`; `journal` holds what made it so. `stored`: the newest state that can
  // be read back, or null. All entries made from here on go to the journal.
  Run(RunOptions options, RunState state, std::unique_ptr<Journal> journal, StoredStatePtr stored,
      absl::Time now);
  ~Run();

  // ---- for the thread that leads

  // From now on results go to `outputs` and states to `writer`; either may be null. Before the
  // first Advance().
  void Begin(std::unique_ptr<RunOutputs> outputs, std::unique_ptr<StateWriter> writer);
  // Handles what was posted and decides what time brings. Returns the exit code when the run is
  // over and everybody has heard of it.
  std::optional<int> Advance(absl::Time now);
  // Readable when Advance() has something to do; call it some ten times a second besides.
  int wake_fd() const { return mailbox_.fd(); }
  // Interrupts the run: somebody sent us `signal`. A second call does not wait for anybody.
  void Stop(int signal);

  // ---- for the service

  // A message has come; the peer reads on when it is handled.
  void OnMessage(PeerPtr peer, WorkerMessage message);
  // The peer's stream has ended.
  void OnClosed(PeerPtr peer);
  // A whole state has come. `reply` is called once, from any thread: OK when it is kept,
  // FAILED_PRECONDITION for an old generation, INVALID_ARGUMENT for a position that is none.
  void OnState(StoredStatePtr state, std::function<void(absl::Status)> reply);

  // FAILED_PRECONDITION: another run (an empty `run_id` is any), or not the current generation.
  absl::Status CheckRun(const std::string& run_id) const;
  absl::Status CheckGeneration(const std::string& run_id, uint64_t generation) const;
  RunStatus status() const;
  // Whether a state at `position` that `generation` computed may still be gone on with.
  bool OnLineage(uint64_t generation, uint64_t position) const;
  const std::string& run_id() const { return run_id_; }
  const RunOptions& options() const { return options_; }
  // Of the thread that leads, or while nobody leads.
  const RunState& state() const { return state_; }
  KeyValueTable& keys() { return keys_; }
  const StateStore& states() const { return states_; }
  // The key that is set when the state with this digest has come.
  static std::string StateKey(const std::string& digest) { return "ringmaster/state/" + digest; }

 private:
  // What the run knows of a stream that has said hello.
  struct Session {
    PeerPtr peer;
    MemberId member = 0;
  };
  struct Ending {
    int exit_code = 0;
    absl::Time leave_at;
    CoordinatorMessage message;  // that everybody hears
  };
  struct Interruption {
    int signal = 0;
    absl::Time deadline;
  };

  void HandleMessage(const PeerPtr& peer, const WorkerMessage& message);
  void HandleHello(const PeerPtr& peer, const WorkerMessage& message);
  void Welcome(const Session& session, bool recognised);
  absl::Status Handle(const Session& session, const WorkerMessage& message);
  absl::Status HandleRecords(const Session& session, const StepRecords& records);
  void HandleHeartbeat(const Heartbeat& heartbeat);
  void OnRecord(const GlobalRecord& record);
  absl::Status CheckEnvelope(const WorkerMessage& message) const;
  void HandleClosed(const PeerPtr& peer);
  absl::Status HandleState(const StoredStatePtr& state);
  void AcceptState(const StoredStatePtr& state, uint64_t position);
  void Write(const StoredStatePtr& state, bool required);
  void HandleVerified(const StoredStatePtr& state, const absl::StatusOr<std::string>& file);
  void Refuse(const PeerPtr& peer, const std::string& who, const absl::Status& status);

  void Decide();
  void OnBroken(const Membership::Broken& broken);
  void FormGeneration();
  absl::StatusOr<RecoveryPlan> Plan(const std::vector<MemberId>& candidates) const;
  void Assign(const RecoveryPlan& plan);
  void DecideInterruption();
  bool InterruptionIsSafe() const;
  void Conclude();
  void End(RunOutcome outcome, int exit_code, const std::string& reason);
  void CloseGone();
  void NoteProgress(uint64_t position);
  absl::Duration HangLimit() const;
  uint64_t generation() const { return membership_.generation(); }

  void Record(JournalEntry entry);
  bool Commit();
  void SendAcks();
  void Publish();
  void Send(const PeerPtr& peer, CoordinatorMessage message);
  void SendToMembers(const CoordinatorMessage& message);
  void FlushOutbox();
  const Session* SessionOf(MemberId member) const;

  const RunOptions options_;
  const std::string run_id_;
  Mailbox mailbox_;
  KeyValueTable keys_;
  StateStore states_;

  // Of the thread that leads.
  absl::Time now_;
  RunState state_;
  std::unique_ptr<Journal> journal_;
  bool journal_fails_ = false;
  bool checkpoints_fail_ = false;
  Membership membership_;
  RunReport report_;
  std::unique_ptr<RunOutputs> outputs_;
  std::map<Peer*, Session> sessions_;
  std::vector<std::pair<PeerPtr, CoordinatorMessage>> outbox_;
  std::string logged_reason_;
  int refusals_ = 0;

  StoredStatePtr stored_;     // the newest that training could go on from
  StoredStatePtr waiting_;    // came before the records that lead to it
  uint64_t verified_ = 0;     // position of the newest state that is on the disk
  uint64_t told_sender_ = 0;  // so many records are safe; and everybody else:
  uint64_t told_everybody_ = 0;
  absl::Time told_everybody_at_ = absl::InfinitePast();
  uint64_t seen_position_ = 0;  // the furthest that heartbeats and records tell of
  StepClock step_clock_;
  uint64_t steps_in_generation_ = 0;
  std::optional<absl::Time> broken_at_;  // until the first step after it
  std::optional<Interruption> interruption_;
  std::optional<Ending> ending_;
  // Last: its threads post to this run until it is gone.
  std::unique_ptr<StateWriter> writer_;

  mutable Mutex mutex_;
  RunStatus published_ ABSL_GUARDED_BY(mutex_);
  Lineage lineage_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ringmaster
