#include "worker/reporter.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "worker/position_proto.h"

namespace ringmaster {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kRecordInterval{100};
constexpr size_t kRecordBatch = 64;
// Bounds of a message, which after a long break has much to tell.
constexpr size_t kMaxRecords = 4096;
constexpr size_t kMaxRecordBytes = size_t{1} << 20;

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

}  // namespace

Reporter::Reporter(const Options& options)
    : options_(options),
      states_(options.link, options.stub, options.timeline),
      spool_(options.spool_bytes) {
  options_.link->SetWake([this] {
    MutexLock lock(&mutex_);
    changed_.NotifyAll();
  });
  thread_ = std::thread([this] { Run(); });
}

Reporter::~Reporter() {
  options_.link->SetWake(nullptr);
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

absl::Status Reporter::Begin(const Assigned& assigned, uint64_t position, bool own_state) {
  const uint64_t received = assigned.assignment.records_received();
  const bool is_rank_0 = assigned.assignment.rank() == 0;
  generation_ = assigned.generation;
  position_ = position;
  longest_step_ns_ = 0;
  last_step_ = last_state_ = Clock::now();
  steps_since_state_ = 0;
  states_.Begin(assigned.generation);
  if (options_.note != nullptr) {
    options_.note->rank = static_cast<int32_t>(assigned.assignment.rank());
    options_.note->world_size = static_cast<int32_t>(assigned.assignment.world_size());
  }
  MutexLock lock(&mutex_);
  if (!own_state) spool_.Clear(position);
  spool_.ResumeAt(position, received);
  if (is_rank_0 && received < position) RM_RETURN_IF_ERROR(spool_.CheckFrom(received));
  sending_ = is_rank_0;
  connection_ = 0;
  SendRecords();
  first_sent_ = false;
  return absl::OkStatus();
}

void Reporter::End() {
  {
    MutexLock lock(&mutex_);
    sending_ = false;
  }
  states_.End();
}

void Reporter::OnStep(const FinishedStep& step) {
  if (options_.note != nullptr) {
    options_.note->epoch.store(static_cast<int32_t>(step.epoch), std::memory_order_relaxed);
    options_.note->step.store(static_cast<int32_t>(step.step), std::memory_order_relaxed);
  }
  MeasureStep();
  if (!step.evaluation) {
    steps_done_.fetch_add(1, std::memory_order_relaxed);
    ++steps_since_state_;
  }
  MutexLock lock(&mutex_);
  spool_.Add(ToProto(step));
  position_ = spool_.end();
  if (!first_sent_ || spool_.end() >= next_ + kRecordBatch) SendRecords();
  AwaitRoom();
}

void Reporter::MeasureStep() {
  const Clock::time_point now = Clock::now();
  const int64_t took = std::chrono::nanoseconds(now - last_step_).count();
  last_step_ = now;
  if (took > longest_step_ns_) longest_step_ns_ = took;
}

void Reporter::AwaitRoom() {
  while (spool_.full() && !stopping_) {
    const CoordinatorLink::State state = options_.link->state();
    spool_.Acknowledge(state.records_received);
    if (!spool_.full() || state.over) return;
    if (!std::exchange(told_full_, true)) {
      spdlog::warn(
          "{} records wait for the coordinator, all that there is room for: training waits too",
          spool_.end() - spool_.begin());
    }
    SendRecords();
    changed_.WaitUntil(&mutex_, Clock::now() + kRecordInterval);
  }
  told_full_ = false;
}

bool Reporter::WantsState() {
  if (options_.checkpoint_every_steps > 0 &&
      steps_since_state_ >= options_.checkpoint_every_steps) {
    return true;
  }
  return options_.checkpoint_every > absl::ZeroDuration() &&
         Clock::now() - last_state_ >= absl::ToChronoNanoseconds(options_.checkpoint_every);
}

void Reporter::OnState(const TrainPosition& position, TrainState state) {
  last_state_ = Clock::now();
  steps_since_state_ = 0;
  const uint64_t index = position_;
  options_.held->Set(generation_, index, std::move(state));
  const bool is_epoch_end = position.step == 0 && position.phase == TrainPosition::Phase::kTrain;
  states_.Add({index, is_epoch_end, options_.held->Get()->state});
}

bool Reporter::Flush(uint64_t connection, absl::Time deadline) {
  MutexLock lock(&mutex_);
  for (;;) {
    SendRecords();
    const CoordinatorLink::State state = options_.link->state();
    if (state.over || !state.connected || state.connection != connection) return false;
    if (!sending_ || state.records_received >= spool_.end()) return true;
    if (absl::Now() >= deadline) return false;
    changed_.WaitUntil(&mutex_, Clock::now() + kRecordInterval);
  }
}

uint64_t Reporter::oldest_record() {
  MutexLock lock(&mutex_);
  return spool_.begin();
}

std::string Reporter::SerializedRecords(uint64_t position) {
  MutexLock lock(&mutex_);
  if (position <= spool_.begin()) return "";
  const size_t all = position - spool_.begin();
  return spool_.From(spool_.begin(), all, spool_.bytes() + 1).SerializeAsString();
}

void Reporter::RestoreRecords(const std::string& serialized, uint64_t position) {
  StepRecords records;
  if (!records.ParseFromString(serialized)) return;
  const auto count = static_cast<uint64_t>(records.records_size());
  if (count > position) return;
  MutexLock lock(&mutex_);
  spool_.ResumeAt(position - count, 0);
  for (GlobalRecord& record : *records.mutable_records()) spool_.Add(std::move(record));
  position_ = position;
}

void Reporter::Run() {
  const auto heartbeat_interval = absl::ToChronoNanoseconds(options_.heartbeat_interval);
  auto next_heartbeat = Clock::now();
  MutexLock lock(&mutex_);
  while (!stopping_) {
    const auto now = Clock::now();
    if (now >= next_heartbeat) {
      SendHeartbeat();
      next_heartbeat = now + heartbeat_interval;
    }
    SendRecords();
    changed_.WaitUntil(&mutex_, std::min<Clock::time_point>(next_heartbeat, now + kRecordInterval));
  }
}

void Reporter::SendHeartbeat() {
  WorkerMessage message;
  Heartbeat* heartbeat = message.mutable_heartbeat();
  *heartbeat->mutable_position() = ToProto(PositionAt(options_.timeline, position_));
  heartbeat->set_steps_done(steps_done_);
  options_.link->Send(std::move(message), options_.link->state().connection);
}

// Over a new connection from the last record that the coordinator has on.
void Reporter::SendRecords() {
  const CoordinatorLink::State state = options_.link->state();
  spool_.Acknowledge(state.records_received);
  if (!sending_ || !state.connected || state.over) return;
  if (std::exchange(connection_, state.connection) != state.connection) {
    next_ = state.records_received;
  }
  next_ = std::max(next_, spool_.begin());
  while (next_ < spool_.end()) {
    WorkerMessage message;
    *message.mutable_records() = spool_.From(next_, kMaxRecords, kMaxRecordBytes);
    const int count = message.records().records_size();
    if (!options_.link->Send(std::move(message), connection_)) return;
    next_ += count;
    first_sent_ = true;
  }
}

}  // namespace ringmaster
