// Connection: one simulated session stream. What is sent at one end arrives at the other in order
// and after a while, until the stream breaks, or falls silent and nobody is told.
//
// Thread safety: none. Connections live as long as the simulation.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/peer.h"
#include "proto/training.pb.h"
#include "tests/simulation/event_queue.h"
#include "tests/simulation/random.h"

namespace ringmaster {

class Connection {
 public:
  // The worker's end.
  class Worker {
   public:
    virtual ~Worker() = default;
    virtual void OnMessage(Connection* connection, const CoordinatorMessage& message) = 0;
    // Last call for this connection.
    virtual void OnEnd(Connection* connection, const absl::Status& status) = 0;
    // The network between it and the coordinator is cut: what is sent waits.
    virtual bool IsCut() const = 0;
  };
  // The coordinator's end.
  class Coordinator {
   public:
    virtual ~Coordinator() = default;
    virtual void OnMessage(const PeerPtr& peer, WorkerMessage message) = 0;
    virtual void OnClosed(const PeerPtr& peer) = 0;
    // It sends this to the worker. False: it has died before it could.
    virtual bool OnSent(const CoordinatorMessage& message) = 0;
    virtual bool IsDying() const = 0;
    virtual bool HasLife(uint64_t life) const = 0;
    virtual uint64_t life() const = 0;
  };

  // The coordinator's end, as it sees it. It keeps its sessions in the order of these addresses, so
  // that they must lie in the order of their making for a seed to always do the same.
  class Peer final : public ringmaster::Peer {
   public:
    explicit Peer(Connection* connection) : connection_(connection) {}
    void Send(CoordinatorMessage message) override;
    void ReadNext() override;
    void Close(const absl::Status& status) override;

   private:
    Connection* connection_;
  };

  // `peers` has room for one more.
  Connection(EventQueue* queue, Random* random, Worker* worker, Coordinator* coordinator,
             std::vector<Peer>* peers);

  // ---- for the worker
  void Send(WorkerMessage message);
  // It closes the stream, or dies. What it has sent still arrives.
  void CloseByWorker();

  // ---- for the coordinator
  // It dies. What it has sent still arrives.
  void CloseByDeath();
  uint64_t life() const { return life_; }

  // ---- for what goes wrong
  // Breaks at once; what is under way is lost.
  void Break();
  // Nothing gets through any more, and nobody is told.
  void FallSilent() { silent_ = true; }
  // What waited for the network goes on.
  void Resume();
  bool open() const { return worker_open_; }

 private:
  // One direction.
  struct Pipe {
    std::deque<std::function<void()>> items;
    bool moving = false;
  };
  void Push(Pipe* pipe, std::function<void()> item);
  void Move(Pipe* pipe);
  absl::Duration Delay();
  void PushEnd(const absl::Status& status);
  void PushClosed();
  void Read();

  EventQueue* const queue_;
  Random* const random_;
  Worker* const worker_;
  Coordinator* const coordinator_;
  const uint64_t life_;  // of the coordinator that it was opened to
  const PeerPtr peer_;
  Pipe up_;    // to the coordinator
  Pipe down_;  // to the worker
  std::deque<WorkerMessage> unread_;
  bool reading_ = true;  // the coordinator waits for a message
  bool closed_ = false;  // once all is read, the coordinator hears of the end
  bool told_closed_ = false;
  bool worker_open_ = true;
  bool coordinator_open_ = true;
  bool silent_ = false;
};

}  // namespace ringmaster
