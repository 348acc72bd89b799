// CoordinatorLink: the way to the coordinator, for the life of a worker process.
//
// A thread of its own dials, says Hello, and dials again when the stream breaks, with backoff. What
// the coordinator says is kept as state that other threads wait for; what concerns the generation
// that is going on is told to its listener at once.
//
// A break changes nothing for a generation: it goes on until the coordinator says otherwise.
// Whoever needs the coordinator waits for the next connection and says what it has to say again. A
// stream that ends with ABORTED means that the run has gone on without this process: its generation
// is over, and it joins anew as a new incarnation.
//
// The envelope's generation is that of the last assignment, and 0 from joining anew until the next.
//
// Thread safety: safe from several threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "proto/training.grpc.pb.h"
#include "worker/session.h"

namespace ringmaster {

struct Assigned {
  uint64_t generation = 0;
  Assignment assignment;
};

// Hears of what happens to a generation, on threads of gRPC and of the link. The methods must be
// quick and must not use the link.
class GenerationListener {
 public:
  virtual ~GenerationListener() = default;
  // Once, and the last call.
  virtual void OnOver(const std::string& reason) = 0;
  virtual void OnRegroup(const std::string& reason) = 0;
};

// Why the link ends for good.
struct LinkEnd {
  enum class Kind {
    kEndOfRun,  // exit_code, reason
    kRefused,   // for what this process is: `status` is the coordinator's
    kGaveUp,    // no coordinator for too long
    kStopped,   // Stop()
  };
  Kind kind = Kind::kStopped;
  int exit_code = 0;
  absl::Status status;
};

class CoordinatorLink : private Session::Handler {
 public:
  struct Options {
    std::string address;  // "HOST:PORT", for messages
    std::string run_id;   // empty: the first coordinator's
    // Fills in everything but the incarnation; called before each dialling. Errors are as a
    // coordinator out of reach.
    std::function<absl::StatusOr<Hello>()> hello;
    absl::Duration give_up_after = absl::Seconds(600);   // since the last connection
    absl::Duration welcome_timeout = absl::Seconds(10);  // from Hello to Welcome
  };

  // Begins to dial. Borrows the stub.
  CoordinatorLink(Training::StubInterface* stub, Options options);
  // Close()s.
  ~CoordinatorLink() override;

  // The first Welcome. Null if the link ended before.
  std::optional<Welcome> AwaitWelcome();

  // What a wait ended with.
  enum class Event { kConnected, kAssigned, kOver, kEnded };
  // For who stands: waits for an assignment (taken by TakeAssignment()), for a connection other
  // than number `told` (0: for any), or for the end.
  Event AwaitPlace(uint64_t told);
  // For who has finished: waits for a connection other than `told`, for the generation to be over,
  // or for the end.
  Event AwaitOutcome(uint64_t told);
  Assigned TakeAssignment();

  struct State {
    uint64_t connection = 0;        // counts Welcomes; names the connection
    bool connected = false;         // it has not broken
    uint64_t records_received = 0;  // as RecordsAck; after a Welcome or an assignment as it says
    bool over = false;              // the generation is, or the link
  };
  State state() const;
  std::optional<LinkEnd> end() const;
  std::string run_id() const;

  // Sends over connection number `connection`: false, and nothing sent, if that has broken. Run id
  // and generation are filled in.
  bool Send(WorkerMessage message, uint64_t connection);

  // Who hears of the generation of the assignment taken last; at once if there is something to tell
  // already. Null takes it back and waits for a call in progress.
  void SetListener(GenerationListener* listener);
  // Called after each change of state(); must not use the link. Null as above.
  void SetWake(std::function<void()> wake);

  // Ends every wait above with kStopped; the connection stays.
  void Stop();
  // Sends what is queued and closes, within about `timeout`. No connection comes after it.
  void Close(absl::Duration timeout);

 private:
  void OnMessage(const CoordinatorMessage& message) override;
  void OnEnd(const absl::Status& status) override;

  void Run();
  // One stream from Hello to its end.
  absl::Status Serve();
  // What the end of a stream means; false: do not dial again.
  bool GoOnAfter(const absl::Status& status);
  void TellTrouble(const std::string& reason);
  void Take(const CoordinatorMessage& message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TakeWelcome(const CoordinatorMessage& message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LeaveGeneration(const std::string& reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndWith(LinkEnd end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Publish();
  void TellListener();

  Training::StubInterface* const stub_;
  const Options options_;

  mutable Mutex mutex_;
  CondVar changed_;
  uint64_t incarnation_ ABSL_GUARDED_BY(mutex_);
  std::string run_id_ ABSL_GUARDED_BY(mutex_);
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unique_ptr<Session> session_ ABSL_GUARDED_BY(mutex_);
  State state_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> stream_end_ ABSL_GUARDED_BY(mutex_);
  std::optional<Welcome> welcome_ ABSL_GUARDED_BY(mutex_);
  std::optional<Assigned> assigned_ ABSL_GUARDED_BY(mutex_);
  std::string over_reason_ ABSL_GUARDED_BY(mutex_);
  std::optional<std::string> regroup_ ABSL_GUARDED_BY(mutex_);
  std::optional<LinkEnd> end_ ABSL_GUARDED_BY(mutex_);
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Duration close_timeout_ ABSL_GUARDED_BY(mutex_) = absl::Seconds(2);

  Mutex listener_mutex_;  // held during calls
  GenerationListener* listener_ ABSL_GUARDED_BY(listener_mutex_) = nullptr;
  bool told_over_ ABSL_GUARDED_BY(listener_mutex_) = false;
  bool told_regroup_ ABSL_GUARDED_BY(listener_mutex_) = false;
  Mutex wake_mutex_;  // held during calls
  std::function<void()> wake_ ABSL_GUARDED_BY(wake_mutex_);

  // The thread's own.
  absl::Time unreachable_since_;
  std::string last_trouble_;
  std::thread thread_;
};

}  // namespace ringmaster
