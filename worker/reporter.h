// Reporter: tells the coordinator what a rank does: heartbeats, the records of finished steps, and
// states.
//
// A thread of its own sends heartbeats from construction on and, on rank 0, records every 100 ms;
// the trainer's thread sends the first record of a generation and every 64. Records are kept by
// every rank until the coordinator has acknowledged them, within bounds: beyond these, training
// waits for the coordinator. States go out on a thread of the StateSender: training never waits for
// them.
//
// Thread safety: the observer's methods are for the trainer's thread, the rest is safe from any.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "common/timeline.h"
#include "proto/training.grpc.pb.h"
#include "worker/coordinator_link.h"
#include "worker/held_state.h"
#include "worker/process_notes.h"
#include "worker/record_spool.h"
#include "worker/state_sender.h"
#include "worker/trainer.h"

namespace ringmaster {

class Reporter : public TrainingObserver {
 public:
  struct Options {
    CoordinatorLink* link = nullptr;
    Training::StubInterface* stub = nullptr;
    HeldState* held = nullptr;
    ProcessNote* note = nullptr;  // may be null
    Timeline timeline{1, 1};
    absl::Duration heartbeat_interval = absl::Milliseconds(500);
    uint32_t checkpoint_every_steps = 0;  // 0: not by this measure
    absl::Duration checkpoint_every;      // 0: not by this measure
    size_t spool_bytes = size_t{64} << 20;
  };

  // Borrows what the options point to.
  explicit Reporter(const Options& options);
  ~Reporter() override;

  // The generation that begins at `position`. OUT_OF_RANGE, on rank 0: the coordinator lacks
  // records that this process does not have either; the message names them.
  // `own_state`: the process has come to `position` itself. Otherwise its records are of work that
  // was lost.
  absl::Status Begin(const Assigned& assigned, uint64_t position, bool own_state);
  // It is over: no more records and states are sent.
  void End();

  void OnStep(const FinishedStep& step) override;
  bool WantsState() override;
  void OnState(const TrainPosition& position, TrainState state) override;

  // Sends what is left over connection number `connection` and waits until it is acknowledged:
  // true. False when that connection breaks, the generation is over, or at `deadline`.
  bool Flush(uint64_t connection, absl::Time deadline);

  StateSender& states() { return states_; }
  // The longest step of this generation so far, evaluations included.
  absl::Duration longest_step() const { return absl::Nanoseconds(longest_step_ns_.load()); }
  // The oldest record that this process still has, or the index of the next one if it has none.
  uint64_t oldest_record();
  // The records kept that come before `position`, for a successor.
  std::string SerializedRecords(uint64_t position);
  // The records that a predecessor left: they end before `position`.
  void RestoreRecords(const std::string& serialized, uint64_t position);

 private:
  void Run();
  void MeasureStep();
  void SendHeartbeat();
  void SendRecords() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AwaitRoom() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  StateSender states_;
  std::atomic<uint64_t> position_{0};
  std::atomic<uint64_t> steps_done_{0};
  std::atomic<int64_t> longest_step_ns_{0};

  // The trainer's thread's own.
  uint64_t generation_ = 0;
  std::chrono::steady_clock::time_point last_step_;
  std::chrono::steady_clock::time_point last_state_;
  uint64_t steps_since_state_ = 0;

  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool sending_ ABSL_GUARDED_BY(mutex_) = false;     // rank 0, and the generation goes on
  bool first_sent_ ABSL_GUARDED_BY(mutex_) = false;  // the first record of the generation
  bool told_full_ ABSL_GUARDED_BY(mutex_) = false;
  RecordSpool spool_ ABSL_GUARDED_BY(mutex_);
  uint64_t connection_ ABSL_GUARDED_BY(mutex_) = 0;  // that records were last sent over
  uint64_t next_ ABSL_GUARDED_BY(mutex_) = 0;        // the next record to send over it
  std::thread thread_;
};

}  // namespace ringmaster
