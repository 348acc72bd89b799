#include "worker/state_sender.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "common/logging.h"
#include "worker/position_proto.h"
#include "worker/retry.h"
#include "worker/state_client.h"

namespace ringmaster {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(60);
constexpr std::chrono::milliseconds kAskInterval{50};

bool IsFinal(const absl::Status& status) {
  return status.ok() || absl::IsFailedPrecondition(status) || absl::IsInvalidArgument(status);
}

}  // namespace

void StateQueue::Add(OutgoingState state) {
  std::erase_if(states_, [](const OutgoingState& waiting) { return !waiting.is_epoch_end; });
  if (states_.size() == kMaxEpochEnds) states_.pop_front();
  states_.push_back(std::move(state));
}

OutgoingState StateQueue::Take() {
  OutgoingState state = std::move(states_.front());
  states_.pop_front();
  return state;
}

StateSender::StateSender(CoordinatorLink* link, Training::StubInterface* stub,
                         const Timeline& timeline)
    : link_(link), stub_(stub), timeline_(timeline), thread_([this] { Run(); }) {}

StateSender::~StateSender() {
  End();
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void StateSender::Begin(uint64_t generation) {
  MutexLock lock(&mutex_);
  generation_ = generation;
}

void StateSender::End() {
  MutexLock lock(&mutex_);
  queue_.Clear();
  if (in_flight_ != nullptr) in_flight_->Trigger();
  changed_.NotifyAll();
  while (in_flight_ != nullptr) changed_.Wait(&mutex_);
}

void StateSender::Add(OutgoingState state) {
  MutexLock lock(&mutex_);
  queue_.Add(std::move(state));
  changed_.NotifyAll();
}

bool StateSender::AwaitIdle(const std::function<bool()>& give_up) {
  MutexLock lock(&mutex_);
  while (!queue_.empty() || in_flight_ != nullptr) {
    if (give_up()) return false;
    changed_.WaitUntil(&mutex_, std::chrono::steady_clock::now() + kAskInterval);
  }
  return true;
}

void StateSender::Run() {
  mutex_.Lock();
  Backoff backoff(reinterpret_cast<uintptr_t>(this));
  while (!stopping_) {
    if (queue_.empty()) {
      changed_.Wait(&mutex_);
      continue;
    }
    const OutgoingState state = queue_.Take();
    const auto interrupt = std::make_shared<Interrupt>();
    in_flight_ = interrupt;
    const uint64_t generation = generation_;
    backoff.Reset();
    for (;;) {
      mutex_.Unlock();
      const bool settled = Send(state, generation, interrupt.get());
      mutex_.Lock();
      if (settled || interrupt->triggered()) break;
      const auto again =
          std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(backoff.Next());
      while (!interrupt->triggered() && changed_.WaitUntil(&mutex_, again)) {
      }
    }
    in_flight_.reset();
    changed_.NotifyAll();
  }
  mutex_.Unlock();
}

bool StateSender::Send(const OutgoingState& state, uint64_t generation, Interrupt* interrupt) {
  const absl::Status status =
      PutState(stub_, link_->run_id(), generation, ToProto(PositionAt(timeline_, state.position)),
               *state.state, kTimeout, interrupt);
  if (!status.ok() && !interrupt->triggered()) {
    spdlog::debug("cannot hand in the state at record {}: {}", state.position,
                  std::string(status.message()));
  }
  return IsFinal(status);
}

}  // namespace ringmaster
