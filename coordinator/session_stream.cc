#include "coordinator/session_stream.h"

#include <utility>

#include "common/grpc_status.h"

namespace ringmaster {

SessionStream* SessionStream::Start(Run* run) {
  std::shared_ptr<SessionStream> stream(new SessionStream(run));
  stream->self_ = stream;
  stream->ReadNext();
  return stream.get();
}

void SessionStream::Send(CoordinatorMessage message) {
  MutexLock lock(&mutex_);
  if (broken_ || closing_) return;
  outgoing_.push_back(std::move(message));
  Continue();
}

void SessionStream::ReadNext() {
  MutexLock lock(&mutex_);
  if (!closing_) StartRead(&incoming_);
}

void SessionStream::Close(const absl::Status& status) {
  MutexLock lock(&mutex_);
  if (closing_) return;
  closing_ = ToGrpc(status);
  Continue();
}

void SessionStream::OnReadDone(bool ok) {
  if (ok) return run_->OnMessage(self_, std::move(incoming_));
  Close(absl::OkStatus());
}

void SessionStream::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  writing_ = false;
  outgoing_.pop_front();
  if (!ok) {
    broken_ = true;
    outgoing_.clear();
  }
  Continue();
}

// Also while no read is in progress, as when the server shuts down.
void SessionStream::OnCancel() { Close(absl::CancelledError("the stream was cut off")); }

void SessionStream::OnDone() {
  run_->OnClosed(self_);
  self_.reset();
}

// Writes what is queued, then finishes if asked to.
void SessionStream::Continue() {
  if (writing_ || finished_) return;
  if (!outgoing_.empty()) {
    writing_ = true;
    StartWrite(&outgoing_.front());
  } else if (closing_) {
    finished_ = true;
    Finish(*closing_);
  }
}

}  // namespace ringmaster
