// SessionStream: the gRPC side of a Peer. Callback API: no thread of its own.
//
// Thread safety: as Peer. Ownership: it keeps itself alive until gRPC is through with it; whoever
// holds a PeerPtr may use it for longer, to no effect.
#pragma once

#include <deque>
#include <memory>
#include <optional>

#include "common/mutex.h"
#include "coordinator/peer.h"
#include "coordinator/run.h"
#include "grpcpp/support/server_callback.h"
#include "proto/training.pb.h"

namespace ringmaster {

class SessionStream final : public Peer,
                            public grpc::ServerBidiReactor<WorkerMessage, CoordinatorMessage>,
                            public std::enable_shared_from_this<SessionStream> {
 public:
  // A stream of `run`, which must outlive the server. Starts to read.
  static SessionStream* Start(Run* run);

  void Send(CoordinatorMessage message) override;
  void ReadNext() override;
  void Close(const absl::Status& status) override;

 private:
  explicit SessionStream(Run* run) : run_(run) {}

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  void Continue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Run* const run_;
  std::shared_ptr<SessionStream> self_;  // until OnDone
  WorkerMessage incoming_;               // of the read in progress

  Mutex mutex_;
  std::deque<CoordinatorMessage> outgoing_ ABSL_GUARDED_BY(mutex_);  // first: being written
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;                  // no write can succeed any more
  std::optional<grpc::Status> closing_ ABSL_GUARDED_BY(mutex_);  // to finish with
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;                // Finish() was called
};

}  // namespace ringmaster
