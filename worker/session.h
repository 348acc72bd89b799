// Session: one stream between a worker process and the coordinator, from Hello to its end.
//
// Callback API: no thread of its own. Thread safety: safe from several threads.
#pragma once

#include <chrono>
#include <memory>

#include "absl/status/status.h"
#include "proto/training.grpc.pb.h"

namespace ringmaster {

class Session {
 public:
  // Called on gRPC's threads, one call at a time, as the stream goes. It may send, but neither
  // close nor destroy the session.
  class Handler {
   public:
    virtual ~Handler() = default;
    virtual void OnMessage(const CoordinatorMessage& message) = 0;
    // Last call. UNAVAILABLE: the coordinator cannot be reached, or has gone. OK: it closed the
    // stream. Otherwise the codes of the rpc.
    virtual void OnEnd(const absl::Status& status) = 0;
  };

  // Opens the stream and says `hello`. The stub and the handler must outlive the session.
  Session(Training::StubInterface* stub, WorkerMessage hello, Handler* handler);
  // Closes, with 2 s for it.
  ~Session();

  // Queues a message. Dropped when the stream has ended or is being closed.
  void Send(WorkerMessage message);

  // Sends what is queued, says that nothing more comes, waits for the coordinator to close, at most
  // `timeout`, then cancels. When it returns no call of the handler is going on or will come.
  void Close(std::chrono::nanoseconds timeout);

 private:
  class Stream;
  std::unique_ptr<Stream> stream_;
};

}  // namespace ringmaster
