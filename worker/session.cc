#include "worker/session.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "common/mutex.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

constexpr absl::Duration kCloseTimeout = absl::Seconds(2);

std::chrono::steady_clock::time_point After(absl::Duration timeout) {
  // Far enough for everybody, and no overflow.
  return std::chrono::steady_clock::now() +
         absl::ToChronoNanoseconds(std::min(timeout, absl::Hours(24 * 365)));
}

}  // namespace

class Session::Stream : public grpc::ClientBidiReactor<WorkerMessage, CoordinatorMessage> {
 public:
  explicit Stream(std::string run_id) : run_id_(std::move(run_id)) {}

  void Start(Training::StubInterface* stub, WorkerMessage hello) {
    stub->async()->Session(&context_, this);
    AddHold();  // writes start outside of reactions until the last read has failed
    StartRead(&incoming_);
    Send(std::move(hello));
    StartCall();
  }

  ~Stream() override {
    MutexLock lock(&mutex_);
    if (!closed_ && !half_closed_ && !writing_) HalfClose();
    close_when_written_ = true;
    const auto deadline = After(kCloseTimeout);
    while (!done_ && changed_.WaitUntil(&mutex_, deadline)) {
    }
    if (!done_) context_.TryCancel();
    while (!done_) changed_.Wait(&mutex_);
  }

  void Send(WorkerMessage message) {
    MutexLock lock(&mutex_);
    if (closed_ || half_closed_) return;
    message.set_run_id(run_id_);
    message.set_generation(generation_);
    outgoing_.push_back(std::move(message));
    WriteNext();
  }

  void OnReadDone(bool ok) override {
    {
      MutexLock lock(&mutex_);
      if (ok) {
        Take();
      } else {
        closed_ = true;
      }
      changed_.NotifyAll();
    }
    if (ok) {
      StartRead(&incoming_);
      Interrupt();
    } else {
      RemoveHold();
    }
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(&mutex_);
    writing_ = false;
    outgoing_.pop_front();
    if (!ok) outgoing_.clear();  // the read will fail too and say why
    if (ok) WriteNext();
    if (close_when_written_ && outgoing_.empty() && !closed_ && !half_closed_) HalfClose();
    changed_.NotifyAll();
  }

  void OnDone(const grpc::Status& status) override {
    {
      MutexLock lock(&mutex_);
      final_ = FromGrpc(status);
      broken_ = true;
    }
    Interrupt();
    // The owner may be waiting to destroy this: nothing may follow.
    MutexLock lock(&mutex_);
    done_ = true;
    changed_.NotifyAll();
  }

  void SetInterrupt(std::function<void()> interrupt) {
    {
      MutexLock lock(&interrupt_mutex_);
      interrupt_ = std::move(interrupt);
    }
    Interrupt();
  }

  absl::Status health() {
    MutexLock lock(&mutex_);
    return Health();
  }

  // Waits until `ready` (called with the lock held) or the stream is done or time is up.
  template <typename Ready>
  absl::Status Await(absl::Duration timeout, const std::string& what, Ready ready) {
    MutexLock lock(&mutex_);
    const auto deadline = After(timeout);
    while (!ready()) {
      if (done_) return Broken();
      if (!changed_.WaitUntil(&mutex_, deadline) && !ready() && !done_) {
        return absl::DeadlineExceededError(absl::StrCat("the coordinator did not ", what,
                                                        " within ", absl::FormatDuration(timeout)));
      }
    }
    return absl::OkStatus();
  }

  // With the lock held, for use in Await's condition.
  const std::optional<Welcome>& welcome() const { return welcome_; }
  const std::optional<Assigned>& assigned() const { return assigned_; }
  const std::optional<EndOfRun>& end() const { return end_; }
  uint64_t acknowledged() const { return acknowledged_; }
  absl::Status Health() const {
    if (end_) return absl::AbortedError(end_->reason());
    if (aborted_) return absl::AbortedError(*aborted_);
    return broken_ ? Broken() : absl::OkStatus();
  }
  const std::string& run_id() const { return run_id_; }

 private:
  absl::Status Broken() const {
    if (!final_.ok() && !absl::IsUnavailable(final_) && !absl::IsCancelled(final_)) return final_;
    return absl::UnavailableError(
        absl::StrCat("the stream to the coordinator broke",
                     final_.ok() ? "" : absl::StrCat(": ", std::string(final_.message()))));
  }

  // Keeps what incoming_ says.
  void Take() {
    if (run_id_.empty()) run_id_ = incoming_.run_id();
    switch (incoming_.kind_case()) {
      case CoordinatorMessage::kWelcome:
        welcome_ = incoming_.welcome();
        break;
      case CoordinatorMessage::kAssignment:
        generation_ = incoming_.generation();
        assigned_ = Assigned{generation_, incoming_.assignment()};
        break;
      case CoordinatorMessage::kAck:
        acknowledged_ = incoming_.ack().records_received();
        break;
      case CoordinatorMessage::kAbort:
        aborted_ = incoming_.abort().reason();
        break;
      case CoordinatorMessage::kEnd:
        end_ = incoming_.end();
        break;
      case CoordinatorMessage::kRegroup:
      case CoordinatorMessage::KIND_NOT_SET:
        break;
    }
  }

  void WriteNext() {
    if (writing_ || outgoing_.empty()) return;
    writing_ = true;
    StartWrite(&outgoing_.front());
  }

  void HalfClose() {
    half_closed_ = true;
    StartWritesDone();
  }

  void Interrupt() {
    if (health().ok()) return;
    MutexLock lock(&interrupt_mutex_);
    if (interrupt_) interrupt_();
    interrupt_ = nullptr;
  }

  grpc::ClientContext context_;
  CoordinatorMessage incoming_;  // of the read in progress

  mutable Mutex mutex_;
  CondVar changed_;
  std::string run_id_;
  uint64_t generation_ = 0;
  std::deque<WorkerMessage> outgoing_;  // the first is being written while writing_
  bool writing_ = false;
  bool close_when_written_ = false;
  bool half_closed_ = false;
  bool closed_ = false;  // no read will succeed any more
  bool broken_ = false;  // the stream has ended, with final_
  bool done_ = false;    // gRPC is through with this object
  absl::Status final_;
  std::optional<Welcome> welcome_;
  std::optional<Assigned> assigned_;
  std::optional<std::string> aborted_;
  std::optional<EndOfRun> end_;
  uint64_t acknowledged_ = 0;

  Mutex interrupt_mutex_;  // held during the call
  std::function<void()> interrupt_ ABSL_GUARDED_BY(interrupt_mutex_);
};

absl::StatusOr<std::unique_ptr<Session>> Session::Open(Training::StubInterface* stub,
                                                       const std::string& run_id,
                                                       const Hello& hello, absl::Duration timeout) {
  std::unique_ptr<Session> session(new Session);
  session->stream_ = std::make_unique<Stream>(run_id);
  Stream& stream = *session->stream_;
  WorkerMessage message;
  *message.mutable_hello() = hello;
  stream.Start(stub, std::move(message));
  absl::Status status = stream.Await(timeout, "answer", [&] {
    if (!stream.welcome()) return stream.end().has_value();
    session->welcome_ = *stream.welcome();
    session->run_id_ = stream.run_id();
    return true;
  });
  if (absl::IsDeadlineExceeded(status)) return absl::UnavailableError(status.message());
  RM_RETURN_IF_ERROR(status);
  if (!session->welcome_.has_config()) return stream.health();
  return session;
}

Session::~Session() = default;

absl::StatusOr<Assigned> Session::WaitForAssignment() {
  Assigned assigned;
  absl::Status health;
  RM_RETURN_IF_ERROR(stream_->Await(absl::InfiniteDuration(), "assign a rank", [&] {
    health = stream_->Health();
    if (stream_->assigned()) assigned = *stream_->assigned();
    return !health.ok() || stream_->assigned().has_value();
  }));
  RM_RETURN_IF_ERROR(health);
  return assigned;
}

void Session::SetInterrupt(std::function<void()> interrupt) {
  stream_->SetInterrupt(std::move(interrupt));
}

absl::Status Session::health() const { return stream_->health(); }

void Session::Send(WorkerMessage message) { stream_->Send(std::move(message)); }

absl::Status Session::WaitForAck(uint64_t records, absl::Duration timeout) {
  absl::Status health;
  RM_RETURN_IF_ERROR(stream_->Await(timeout, "acknowledge the records", [&] {
    if (stream_->acknowledged() >= records) return true;
    health = stream_->Health();
    return !health.ok();
  }));
  return health;
}

absl::StatusOr<EndOfRun> Session::WaitForEnd(absl::Duration timeout) {
  EndOfRun end;
  RM_RETURN_IF_ERROR(stream_->Await(timeout, "end the run", [&] {
    if (stream_->end()) end = *stream_->end();
    return stream_->end().has_value();
  }));
  return end;
}

}  // namespace ringmaster
