#include "worker/reporter.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/status_macros.h"
#include "worker/state_client.h"

namespace ringmaster {
namespace {

constexpr std::chrono::milliseconds kRecordInterval{100};
constexpr size_t kRecordBatch = 64;
constexpr absl::Duration kAckTimeout = absl::Seconds(30);

GlobalRecord ToProto(const FinishedStep& step) {
  GlobalRecord proto;
  const StepRecord& record = step.reduced.record;
  proto.set_epoch(step.epoch);
  proto.set_step(step.step);
  proto.set_evaluation(step.evaluation);
  proto.set_loss_sum_quanta(record.loss_sum_quanta);
  proto.set_correct(record.correct);
  proto.set_samples(record.samples);
  proto.set_sample_digest(record.digest);
  proto.set_non_finite(record.non_finite);
  for (const RankTimes& times : step.reduced.rank_times) {
    proto.add_compute_us(times.compute_us);
    proto.add_all_reduce_us(times.all_reduce_us);
  }
  proto.set_epoch_seconds(step.epoch_seconds);
  return proto;
}

Position ToProto(const TrainPosition& position) {
  Position proto;
  proto.set_epoch(position.epoch);
  proto.set_step(position.step);
  proto.set_phase(static_cast<Position::Phase>(position.phase));
  return proto;
}

}  // namespace

Reporter::Reporter(Session* session, Training::StubInterface* stub, ProcessNote* note)
    : session_(session), stub_(stub), note_(note), thread_([this] { Run(); }) {}

Reporter::~Reporter() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void Reporter::Attach(const Trainer* trainer) {
  MutexLock lock(&mutex_);
  trainer_ = trainer;
}

void Reporter::SetPlace(const Assigned& assigned) {
  generation_ = assigned.generation;
  is_rank_0_ = assigned.assignment.rank() == 0;
  if (note_ == nullptr) return;
  note_->rank = static_cast<int32_t>(assigned.assignment.rank());
  note_->world_size = static_cast<int32_t>(assigned.assignment.world_size());
}

void Reporter::OnStep(const FinishedStep& step) {
  if (note_ != nullptr) {
    note_->epoch.store(static_cast<int32_t>(step.epoch), std::memory_order_relaxed);
    note_->step.store(static_cast<int32_t>(step.step), std::memory_order_relaxed);
  }
  if (!is_rank_0_) return;
  MutexLock lock(&mutex_);
  unsent_.push_back(ToProto(step));
  if (unsent_.size() >= kRecordBatch) SendRecords();
}

absl::Status Reporter::OnEpochEnd(uint32_t epoch, const TrainState& state) {
  RM_RETURN_IF_ERROR(Flush(kAckTimeout));
  Position next;
  next.set_epoch(epoch + 1);
  if (epoch + 1 == session_->welcome().config().epochs()) next.set_phase(Position::DONE);
  return PutState(stub_, session_->run_id(), generation_, next, state);
}

absl::Status Reporter::Flush(absl::Duration timeout) {
  uint64_t sent = 0;
  {
    MutexLock lock(&mutex_);
    SendRecords();
    sent = sent_;
  }
  return session_->WaitForAck(sent, timeout);
}

void Reporter::Run() {
  const auto heartbeat_interval = std::chrono::milliseconds(
      std::max<uint32_t>(session_->welcome().heartbeat_interval_ms(), 10));
  auto next_heartbeat = std::chrono::steady_clock::now();
  MutexLock lock(&mutex_);
  while (!stopping_) {
    const auto now = std::chrono::steady_clock::now();
    if (now >= next_heartbeat) {
      SendHeartbeat();
      next_heartbeat = now + heartbeat_interval;
    }
    SendRecords();
    changed_.WaitUntil(&mutex_, std::min(next_heartbeat, now + kRecordInterval));
  }
}

void Reporter::SendHeartbeat() {
  WorkerMessage message;
  Heartbeat* heartbeat = message.mutable_heartbeat();
  if (trainer_ != nullptr) {
    *heartbeat->mutable_position() = ToProto(trainer_->position());
    heartbeat->set_steps_done(trainer_->steps_done());
  }
  session_->Send(std::move(message));
}

void Reporter::SendRecords() {
  if (unsent_.empty()) return;
  WorkerMessage message;
  StepRecords* records = message.mutable_records();
  sent_ += unsent_.size();
  for (GlobalRecord& record : unsent_) *records->add_records() = std::move(record);
  unsent_.clear();
  session_->Send(std::move(message));
}

}  // namespace ringmaster
