// Peer: the coordinator's end of one session stream, as the run sees it.
//
// Thread safety: all methods are safe from any thread; none blocks.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "proto/training.pb.h"

namespace ringmaster {

class Peer {
 public:
  virtual ~Peer() = default;
  // Queues a message; dropped when the stream is over.
  virtual void Send(CoordinatorMessage message) = 0;
  // Lets the next message come. One at a time: a worker cannot fill our memory.
  virtual void ReadNext() = 0;
  // Ends the stream with `status` once everything queued is sent.
  virtual void Close(const absl::Status& status) = 0;
};
using PeerPtr = std::shared_ptr<Peer>;

}  // namespace ringmaster
