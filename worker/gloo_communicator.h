// GlooCommunicator: a ring of TCP connections between the ranks, over Gloo's point-to-point
// transport. For gradients in host memory.
//
// The all-reduce is the ring of Patarasuk and Yuan ("Bandwidth optimal all-reduce algorithms for
// clusters of workstations", JPDC 2009): a reduce-scatter, then an all-gather, of world_size
// chunks. Each chunk is summed along one chain of ranks and the result handed round, so that every
// rank ends with the same bits. In a world of two, both send all they have and add: as many bytes,
// half the turns, and the same bits because a + b is b + a. Own code rather than gloo::allreduce
// because that cannot be interrupted.
//
// A rank receives from its left neighbour and sends to its right one, over a connection for each,
// in a world of two as well: Gloo locks a connection while it writes, and its thread would spin for
// the lock to read. A rank that fails closes both, so that the news travels round the ring.
//
// Thread safety and errors: as Communicator. The store is used by Create() only.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "worker/communicator.h"
#include "worker/interrupt.h"
#include "worker/key_value_store.h"

namespace gloo::transport {
class Context;
class UnboundBuffer;
}  // namespace gloo::transport

namespace ringmaster {

class GlooCommunicator : public Communicator {
 public:
  struct Options {
    int rank = 0;
    int world_size = 2;              // at least 2
    KeyValueStore* store = nullptr;  // of this generation; keys are gloo/RANK/left, .../right
    std::string listen_address;      // IP address of this host that the peers reach it at; port 0
    // Until a neighbour has come, for each connection, and for each all-reduce.
    absl::Duration timeout = absl::Seconds(60);
    // Ends Create() with ABORTED, if the store obeys it too; may be null.
    Interrupt* interrupt = nullptr;
  };

  // Returns when both neighbours are connected. INVALID_ARGUMENT: rank or world size is out of
  // range. DEADLINE_EXCEEDED: a neighbour did not come. UNAVAILABLE: the listen address is not of
  // this host, or a neighbour came and went. Otherwise the store's codes. An error names the rank
  // that did not come (worker/unreachable.h). Makes the process ignore SIGPIPE.
  static absl::StatusOr<std::unique_ptr<GlooCommunicator>> Create(const Options& options);

  ~GlooCommunicator() override;

  int rank() const override { return rank_; }
  int world_size() const override { return world_size_; }
  const char* name() const override { return "gloo"; }

  absl::Status AllReduceSum(DeviceSpan data) override;
  void Abort() noexcept override;

 private:
  using Clock = std::chrono::steady_clock;
  using Buffer = gloo::transport::UnboundBuffer;

  // One of a rank's two connections.
  struct Link {
    const char* name;  // "left" or "right", as this rank sees it
    int peer;
    std::shared_ptr<gloo::transport::Context> transport;
  };
  // A part of the data, in elements.
  struct Chunk {
    size_t offset = 0;
    size_t count = 0;
  };

  explicit GlooCommunicator(const Options& options);

  absl::Status Open(const Options& options);
  absl::Status Connect(const Link& link, const Options& options, absl::Time deadline) const;

  void Pin(DeviceSpan data);
  void MakeBuffer(const Link& link, void* data, size_t bytes, std::unique_ptr<Buffer>* buffer);
  size_t BytesOf(size_t elements) const { return elements * ElementBytes(data_.element); }
  // These throw as Gloo does; false: aborted.
  bool Exchange();
  bool RunRing();
  Chunk ChunkAt(int index) const;
  void Send(Chunk chunk, int step);
  bool FinishSend(Chunk chunk);
  void PostReceive(int step);
  bool FinishReceive(int step);
  bool IsReducing(int step) const { return step < world_size_ - 1; }
  std::chrono::milliseconds TimeLeft() const;

  void Close();
  absl::Status Failure(const std::exception* cause);

  const int rank_;
  const int world_size_;
  const absl::Duration timeout_;
  Link left_;   // received from
  Link right_;  // sent to

  std::atomic<bool> aborted_{false};
  bool failed_ = false;
  Clock::time_point deadline_;  // of the running all-reduce
  DeviceSpan data_;             // what the buffers are pinned to
  // What arrives to be added: two in turn, so that the next can come while one is being added.
  std::vector<std::byte> scratch_[2];

  // Held to make, to delete and, by Abort(), to use the buffers; the collective's own thread, the
  // only one that makes and deletes them, uses them without it.
  Mutex mutex_;
  std::unique_ptr<Buffer> outgoing_;    // data_, for right_
  std::unique_ptr<Buffer> incoming_;    // data_, for left_
  std::unique_ptr<Buffer> addends_[2];  // scratch_, for left_
  std::future<void> closed_;
};

}  // namespace ringmaster
