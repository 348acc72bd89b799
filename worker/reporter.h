// Reporter: tells the coordinator what a rank does: heartbeats, the records of finished steps, the
// state at the end of an epoch.
//
// A thread of its own sends heartbeats from construction on, and records (rank 0 only) every 100 ms
// or 64 records.
//
// Thread safety: OnStep and OnEpochEnd are for the trainer's thread, the rest for the owner's.
#pragma once

#include <deque>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "proto/training.grpc.pb.h"
#include "worker/process_notes.h"
#include "worker/session.h"
#include "worker/trainer.h"

namespace ringmaster {

class Reporter : public TrainingObserver {
 public:
  // Borrows all three, of which `note` may be null.
  Reporter(Session* session, Training::StubInterface* stub, ProcessNote* note);
  ~Reporter() override;

  // From now on heartbeats tell the position of `trainer`. Null takes it back.
  void Attach(const Trainer* trainer);
  // Before training: this process's place. Rank 0 sends records and state.
  void SetPlace(const Assigned& assigned);

  void OnStep(const FinishedStep& step) override;
  // Sends the records, waits until they are safe, then hands in the state. Codes: those of the
  // session and of PutState.
  absl::Status OnEpochEnd(uint32_t epoch, const TrainState& state) override;

  // Sends what is left and waits until it is acknowledged. Codes: those of Session::WaitForAck.
  absl::Status Flush(absl::Duration timeout);

 private:
  void Run();
  void SendHeartbeat() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendRecords() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Session* const session_;
  Training::StubInterface* const stub_;
  ProcessNote* const note_;
  uint64_t generation_ = 0;
  bool is_rank_0_ = false;

  Mutex mutex_;
  CondVar changed_;
  const Trainer* trainer_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<GlobalRecord> unsent_ ABSL_GUARDED_BY(mutex_);
  uint64_t sent_ ABSL_GUARDED_BY(mutex_) = 0;
  std::thread thread_;
};

}  // namespace ringmaster
