// Worker: one simulated worker process, which keeps to the protocol of proto/training.proto.
//
// Thread safety: none. Workers live as long as the simulation, also dead ones.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "common/timeline.h"
#include "tests/simulation/connection.h"
#include "tests/simulation/coordinator_host.h"
#include "tests/simulation/exchange.h"

namespace ringmaster {

// The network of one host.
struct HostNetwork {
  bool cut_from_coordinator = false;
  bool cut_from_peers = false;
};

// What a process holds of the training, and its agent may hand on to its successor.
struct Holding {
  uint64_t generation = 0;  // that computed the state; 0: none
  uint64_t position = 0;
  uint64_t chain = 0;
  std::deque<GlobalRecord> records;  // up to the position
  uint64_t records_from() const { return position - records.size(); }
};

class Worker final : public Connection::Worker, public Exchange::Member {
 public:
  struct Surroundings {
    EventQueue* queue = nullptr;
    Random* random = nullptr;
    Trace* trace = nullptr;
    Checker* checker = nullptr;
    Exchange* exchange = nullptr;
    CoordinatorHost* coordinator = nullptr;
    const Scenario* scenario = nullptr;
    // Called when it has ended by itself; `run_over`: nobody is to start it again.
    std::function<void(Worker*, bool run_over)> ended;
  };

  Worker(const Surroundings& around, const HostNetwork* network, std::string node_id,
         uint32_t local_rank, Holding holding);

  // ---- for what goes wrong
  // It is killed; `quietly`: with its host, so that nobody is told.
  void Kill(bool quietly);
  // It says that it cannot go on, and ends.
  void Fail();
  void Hang();
  void Continue();
  void Leave();  // it gets SIGTERM
  void BreakConnection();
  void SilenceConnection();

  bool dead() const { return dead_; }
  bool hangs() const { return hangs_; }
  const std::string& node_id() const { return node_id_; }
  uint32_t local_rank() const { return local_rank_; }
  const HostNetwork* network() const { return network_; }
  // What its agent could hand on: not always the newest.
  const Holding& vault() const { return vault_; }
  std::string Name() const;

  // Connection::Worker
  void OnMessage(Connection* connection, const CoordinatorMessage& message) override;
  void OnEnd(Connection* connection, const absl::Status& status) override;
  bool IsCut() const override { return network_->cut_from_coordinator; }
  // Exchange::Member
  void OnExchanged(uint64_t generation, uint64_t position, bool flag) override;
  void OnBroken(uint64_t generation, uint32_t gone) override;
  bool IsCutFromPeers() const override { return network_->cut_from_peers; }

 private:
  enum class Work { kIdle, kPreparing, kTraining, kFinished };

  // Runs `what` after `delay`, unless it is dead then; when it hangs, once it does not any more.
  void After(absl::Duration delay, std::function<void()> what);
  void Do(std::function<void()> what);
  // The same, unless it has begun other work meanwhile.
  void AfterAtWork(absl::Duration delay, std::function<void()> what);

  void Dial();
  void Redial(absl::Duration delay);
  void WatchWelcome(Connection* connection);
  void Beat();
  void HandleMessage(const CoordinatorMessage& message);
  void HandleWelcome(const CoordinatorMessage& message);
  void HandleAssignment(const CoordinatorMessage& message);
  void HandleEnd(const absl::Status& status);

  void HandIn();
  void Fetch(int attempts);
  void Rendezvous();
  void Begin();
  void Compute();
  void StepDone(bool flag);
  void Finish();
  void StopWork(bool quietly);
  void StopAgreed();
  void StandBy(const std::string& reason, std::optional<uint32_t> unreachable);
  void LeaveNow(int attempts);
  void Die(bool run_over);

  void Send(WorkerMessage message);
  void SendStanding();
  void SendFinished();
  void SendRecords();
  void ResendNowAndThen();
  void Acknowledge(uint64_t records);
  bool connected() const { return connection_ != nullptr && welcomed_; }
  Position position() const;

  const Surroundings around_;
  const HostNetwork* const network_;
  const std::string node_id_;
  const uint32_t local_rank_;
  const Timeline timeline_;
  bool dead_ = false;
  bool hangs_ = false;
  std::vector<std::function<void()>> deferred_;  // while it hangs

  uint64_t incarnation_;
  Connection* connection_ = nullptr;
  bool welcomed_ = false;
  uint64_t coordinator_incarnation_ = 0;

  Holding held_;
  Holding vault_;
  uint64_t received_ = 0;   // so many records are safe
  uint64_t next_send_ = 0;  // by rank 0

  Work work_ = Work::kIdle;
  uint64_t work_number_ = 0;  // changes with each change of the work
  uint64_t generation_ = 0;
  Assignment assignment_;
  bool flag_ = false;
  bool leaving_ = false;
  std::string reason_;  // it stands by
  std::optional<uint32_t> unreachable_;
};

}  // namespace ringmaster
