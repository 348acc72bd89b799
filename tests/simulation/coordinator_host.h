// CoordinatorHost: where the coordinator lives, dies and is started anew: the real Run, on a
// simulated disk, led by simulated time.
//
// Thread safety: none.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/run.h"
#include "tests/simulation/checker.h"
#include "tests/simulation/connection.h"
#include "tests/simulation/disk.h"
#include "tests/simulation/scenario.h"

namespace ringmaster {

class CoordinatorHost final : public Connection::Coordinator {
 public:
  CoordinatorHost(EventQueue* queue, Random* random, Trace* trace, Checker* checker,
                  const Scenario& scenario, Mutation mutation);
  ~CoordinatorHost() override;

  // ---- for who starts and stops it
  // With what the disk holds. Nothing happens if it lives.
  void Start();
  // It is killed.
  void Crash();
  // It is killed at the next turn in which something is to be committed.
  void CrashAtCommit(bool before);
  // It stands still, and does not know.
  void Hang(absl::Duration time);
  void Interrupt();
  // Called when it has ended by itself, with its exit code.
  void OnExit(std::function<void(int)> told) { told_exit_ = std::move(told); }

  // ---- for the workers
  bool alive() const { return run_ != nullptr; }
  // A stream to it; null when nobody listens.
  Connection* Dial(Connection::Worker* worker);
  // As the service does. `reply`: UNAVAILABLE if nobody is there (any more).
  void PutState(StoredStatePtr state, std::function<void(absl::Status)> reply);
  // The state, or null while it has not come. FAILED_PRECONDITION: another generation.
  absl::StatusOr<StoredStatePtr> GetState(uint64_t generation, const std::string& digest) const;

  Disk& disk() { return disk_; }
  const std::vector<std::unique_ptr<Connection>>& connections() const { return connections_; }
  // Of the last coordinator that ended by itself.
  const std::optional<RunState>& last_state() const { return last_state_; }
  const RunState* state() const { return run_ == nullptr ? nullptr : &run_->state(); }

  // Connection::Coordinator
  void OnMessage(const PeerPtr& peer, WorkerMessage message) override;
  void OnClosed(const PeerPtr& peer) override;
  bool OnSent(const CoordinatorMessage& message) override;
  bool IsDying() const override { return disk_.died(); }
  bool HasLife(uint64_t life) const override { return alive() && life == life_; }
  uint64_t life() const override { return life_; }

 private:
  std::optional<RunState> Restore();
  void WakeWithin(absl::Duration time);
  void Turn();
  void RunOutGrace();
  void End();
  WorkerMessage Mutate(WorkerMessage message) const;
  void Relabel(StepRecords* records) const;

  EventQueue* const queue_;
  Random* const random_;
  Trace* const trace_;
  Checker* const checker_;
  const Scenario& scenario_;
  const Mutation mutation_;
  Disk disk_;
  std::unique_ptr<Run> run_;
  uint64_t life_ = 0;
  absl::Time wake_at_;
  absl::Time hangs_until_;
  absl::Duration clock_ahead_;  // under kNoGrace
  std::vector<Connection::Peer> peers_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::function<void(int)> told_exit_;
  std::optional<RunState> last_state_;
};

std::string DescribeMessage(const CoordinatorMessage& message);
std::string DescribeMessage(const WorkerMessage& message);

}  // namespace ringmaster
