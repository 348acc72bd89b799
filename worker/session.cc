#include "worker/session.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <utility>

#include "common/grpc_status.h"
#include "common/mutex.h"

namespace ringmaster {
namespace {

constexpr std::chrono::seconds kCloseTimeout{2};

}  // namespace

class Session::Stream : public grpc::ClientBidiReactor<WorkerMessage, CoordinatorMessage> {
 public:
  explicit Stream(Handler* handler) : handler_(handler) {}

  void Start(Training::StubInterface* stub, WorkerMessage hello) {
    stub->async()->Session(&context_, this);
    AddHold();  // writes start outside of reactions until the last read has failed
    StartRead(&incoming_);
    Send(std::move(hello));
    StartCall();
  }

  void Close(std::chrono::steady_clock::time_point deadline) {
    MutexLock lock(&mutex_);
    if (!closed_ && !half_closed_ && !writing_) HalfClose();
    close_when_written_ = true;
    while (!done_ && changed_.WaitUntil(&mutex_, deadline)) {
    }
    if (!done_) context_.TryCancel();
    while (!done_) changed_.Wait(&mutex_);
  }

  void Send(WorkerMessage message) {
    MutexLock lock(&mutex_);
    if (closed_ || half_closed_ || close_when_written_) return;
    outgoing_.push_back(std::move(message));
    WriteNext();
  }

  void OnReadDone(bool ok) override {
    if (ok) {
      handler_->OnMessage(incoming_);
      StartRead(&incoming_);
      return;
    }
    {
      MutexLock lock(&mutex_);
      closed_ = true;
    }
    RemoveHold();
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(&mutex_);
    writing_ = false;
    outgoing_.pop_front();
    if (!ok) outgoing_.clear();  // the read will fail too and say why
    if (ok) WriteNext();
    if (close_when_written_ && outgoing_.empty() && !closed_ && !half_closed_) HalfClose();
  }

  void OnDone(const grpc::Status& status) override {
    handler_->OnEnd(FromGrpc(status));
    // The owner may be waiting to destroy this: nothing may follow.
    MutexLock lock(&mutex_);
    done_ = true;
    changed_.NotifyAll();
  }

 private:
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (writing_ || outgoing_.empty()) return;
    writing_ = true;
    StartWrite(&outgoing_.front());
  }

  void HalfClose() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    half_closed_ = true;
    StartWritesDone();
  }

  Handler* const handler_;
  grpc::ClientContext context_;
  CoordinatorMessage incoming_;  // of the read in progress

  Mutex mutex_;
  CondVar changed_;
  // The first is being written while writing_.
  std::deque<WorkerMessage> outgoing_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool close_when_written_ ABSL_GUARDED_BY(mutex_) = false;
  bool half_closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;  // no read will succeed any more
  bool done_ ABSL_GUARDED_BY(mutex_) = false;    // gRPC is through with this object
};

Session::Session(Training::StubInterface* stub, WorkerMessage hello, Handler* handler)
    : stream_(std::make_unique<Stream>(handler)) {
  stream_->Start(stub, std::move(hello));
}

Session::~Session() { Close(kCloseTimeout); }

void Session::Send(WorkerMessage message) { stream_->Send(std::move(message)); }

void Session::Close(std::chrono::nanoseconds timeout) {
  stream_->Close(std::chrono::steady_clock::now() + timeout);
}

}  // namespace ringmaster
