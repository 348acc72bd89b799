#include "worker/coordinator_link.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/identity.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "worker/retry.h"

namespace ringmaster {
namespace {

// A connection that lasted shorter does not count as the end of the trouble.
constexpr absl::Duration kSettled = absl::Seconds(5);

std::chrono::steady_clock::time_point After(absl::Duration timeout) {
  // Far enough for everybody, and no overflow.
  return std::chrono::steady_clock::now() +
         absl::ToChronoNanoseconds(std::min(timeout, absl::Hours(24 * 365)));
}

// Whether it is this process that the coordinator does not want, now or later.
bool IsRefusal(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kUnimplemented:
      return true;
    default:
      return false;
  }
}

}  // namespace

CoordinatorLink::CoordinatorLink(Training::StubInterface* stub, Options options)
    : stub_(stub),
      options_(std::move(options)),
      incarnation_(RandomId()),
      run_id_(options_.run_id),
      unreachable_since_(absl::Now()) {
  thread_ = std::thread([this] { Run(); });
}

CoordinatorLink::~CoordinatorLink() { Close(absl::Seconds(2)); }

std::optional<Welcome> CoordinatorLink::AwaitWelcome() {
  MutexLock lock(&mutex_);
  while (!welcome_ && !end_) changed_.Wait(&mutex_);
  return end_ ? std::nullopt : welcome_;
}

CoordinatorLink::Event CoordinatorLink::AwaitPlace(uint64_t told) {
  MutexLock lock(&mutex_);
  for (;;) {
    if (end_) return Event::kEnded;
    if (assigned_) return Event::kAssigned;
    if (state_.connected && state_.connection != told) return Event::kConnected;
    changed_.Wait(&mutex_);
  }
}

CoordinatorLink::Event CoordinatorLink::AwaitOutcome(uint64_t told) {
  MutexLock lock(&mutex_);
  for (;;) {
    if (end_) return Event::kEnded;
    if (state_.over) return Event::kOver;
    if (state_.connected && state_.connection != told) return Event::kConnected;
    changed_.Wait(&mutex_);
  }
}

Assigned CoordinatorLink::TakeAssignment() {
  MutexLock lock(&mutex_);
  Assigned assigned = assigned_.value_or(Assigned());
  assigned_.reset();
  return assigned;
}

CoordinatorLink::State CoordinatorLink::state() const {
  MutexLock lock(&mutex_);
  return state_;
}

std::optional<LinkEnd> CoordinatorLink::end() const {
  MutexLock lock(&mutex_);
  return end_;
}

std::string CoordinatorLink::run_id() const {
  MutexLock lock(&mutex_);
  return run_id_;
}

bool CoordinatorLink::Send(WorkerMessage message, uint64_t connection) {
  MutexLock lock(&mutex_);
  if (!state_.connected || state_.connection != connection) return false;
  message.set_run_id(run_id_);
  message.set_generation(generation_);
  session_->Send(std::move(message));
  return true;
}

void CoordinatorLink::SetListener(GenerationListener* listener) {
  {
    MutexLock lock(&listener_mutex_);
    listener_ = listener;
    told_over_ = false;
    told_regroup_ = false;
  }
  TellListener();
}

void CoordinatorLink::SetWake(std::function<void()> wake) {
  MutexLock lock(&wake_mutex_);
  wake_ = std::move(wake);
}

void CoordinatorLink::Stop() {
  {
    MutexLock lock(&mutex_);
    if (!end_) end_ = LinkEnd{LinkEnd::Kind::kStopped, 0, absl::CancelledError("stopped")};
  }
  Publish();
}

void CoordinatorLink::Close(absl::Duration timeout) {
  {
    MutexLock lock(&mutex_);
    closing_ = true;
    close_timeout_ = timeout;
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

void CoordinatorLink::Run() {
  uint64_t seed = 0;
  {
    MutexLock lock(&mutex_);
    seed = incarnation_;
  }
  Backoff backoff(seed);
  for (;;) {
    const absl::Time start = absl::Now();
    const absl::Status status = Serve();
    if (!GoOnAfter(status)) return;
    if (absl::Now() - start > kSettled) backoff.Reset();
    const auto deadline = After(backoff.Next());
    MutexLock lock(&mutex_);
    while (!closing_ && !end_ && changed_.WaitUntil(&mutex_, deadline)) {
    }
    if (closing_) return;
  }
}

absl::Status CoordinatorLink::Serve() {
  RM_ASSIGN_OR_RETURN(Hello hello, options_.hello());
  WorkerMessage message;
  absl::Status status;
  std::unique_ptr<Session> session;
  absl::Duration close_timeout;
  {
    MutexLock lock(&mutex_);
    hello.set_incarnation(incarnation_);
    *message.mutable_hello() = std::move(hello);
    message.set_run_id(run_id_);
    message.set_generation(generation_);
    stream_end_.reset();
    session_ =
        std::make_unique<Session>(stub_, std::move(message), static_cast<Session::Handler*>(this));
    const auto deadline = After(options_.welcome_timeout);
    while (!state_.connected && !stream_end_ && !closing_ && !end_ &&
           changed_.WaitUntil(&mutex_, deadline)) {
    }
    if (!state_.connected && !stream_end_) {
      status = absl::UnavailableError(absl::StrCat("the coordinator did not answer within ",
                                                   absl::FormatDuration(options_.welcome_timeout)));
    }
    while (state_.connected && !stream_end_ && !closing_) changed_.Wait(&mutex_);
    if (stream_end_) status = *stream_end_;
    state_.connected = false;
    session = std::move(session_);
    close_timeout = close_timeout_;
  }
  // Not under the lock: calls of the handler are waited for.
  session->Close(absl::ToChronoNanoseconds(close_timeout));
  return status;
}

bool CoordinatorLink::GoOnAfter(const absl::Status& status) {
  const absl::Time now = absl::Now();
  const std::string reason(status.message());
  {
    MutexLock lock(&mutex_);
    if (closing_ || end_) return false;
    if (absl::IsAborted(status)) {
      incarnation_ = RandomId();
      LeaveGeneration(reason);
      unreachable_since_ = now;
    } else if (IsRefusal(status)) {
      EndWith({LinkEnd::Kind::kRefused, 0, status});
    } else if (now - unreachable_since_ >= options_.give_up_after) {
      EndWith({LinkEnd::Kind::kGaveUp, 0,
               absl::DeadlineExceededError(absl::StrCat(
                   "could not reach the coordinator at ", options_.address, " within ",
                   absl::FormatDuration(options_.give_up_after), ". Last reason: ", reason,
                   ". Check the address, that the coordinator runs and that its port can be "
                   "reached; --join-timeout sets how long to try"))});
    }
  }
  TellTrouble(reason);
  Publish();
  return !end();
}

void CoordinatorLink::TellTrouble(const std::string& reason) {
  if (reason == last_trouble_ || end()) return;
  // A connection that was lost is lost for one reason; what follows is that it cannot be had yet.
  const bool follows = state().connection > 0 && !last_trouble_.empty();
  last_trouble_ = reason;
  spdlog::log(follows ? spdlog::level::debug : spdlog::level::warn,
              "no connection to the coordinator at {}: {}; trying again", options_.address,
              reason.empty() ? "it closed the stream" : reason);
}

void CoordinatorLink::OnMessage(const CoordinatorMessage& message) {
  {
    MutexLock lock(&mutex_);
    Take(message);
  }
  Publish();
}

void CoordinatorLink::OnEnd(const absl::Status& status) {
  {
    MutexLock lock(&mutex_);
    stream_end_ = status;
    if (std::exchange(state_.connected, false)) unreachable_since_ = absl::Now();
  }
  Publish();
}

void CoordinatorLink::Take(const CoordinatorMessage& message) {
  const bool is_current = message.generation() == generation_;
  switch (message.kind_case()) {
    case CoordinatorMessage::kWelcome:
      return TakeWelcome(message);
    case CoordinatorMessage::kAssignment:
      generation_ = message.generation();
      assigned_ = Assigned{generation_, message.assignment()};
      state_.records_received = message.assignment().records_received();
      state_.over = false;
      regroup_.reset();
      return;
    case CoordinatorMessage::kAck:
      state_.records_received = message.ack().records_received();
      return;
    case CoordinatorMessage::kAbort:
      if (!is_current) return;
      state_.over = true;
      over_reason_ = message.abort().reason();
      return;
    case CoordinatorMessage::kEnd:
      return EndWith({LinkEnd::Kind::kEndOfRun, message.end().exit_code(),
                      absl::AbortedError(message.end().reason())});
    case CoordinatorMessage::kRegroup:
      if (is_current) regroup_ = message.regroup().reason();
      return;
    case CoordinatorMessage::KIND_NOT_SET:
      return;
  }
}

void CoordinatorLink::TakeWelcome(const CoordinatorMessage& message) {
  const Welcome& welcome = message.welcome();
  if (run_id_.empty()) run_id_ = message.run_id();
  if (welcome_ && welcome_->config().SerializeAsString() != welcome.config().SerializeAsString()) {
    return EndWith({LinkEnd::Kind::kRefused, 0,
                    absl::FailedPreconditionError(
                        absl::StrCat("the coordinator at ", options_.address,
                                     " has come back with another configuration of run ", run_id_,
                                     ": start the worker anew"))});
  }
  welcome_ = welcome;
  ++state_.connection;
  state_.connected = true;
  state_.records_received = welcome.records_received();
  last_trouble_.clear();
  if (state_.connection > 1) {
    spdlog::info("connected to the coordinator at {} again", options_.address);
  }
  if (!welcome.recognised()) LeaveGeneration("the run has gone on without this process");
}

void CoordinatorLink::LeaveGeneration(const std::string& reason) {
  generation_ = 0;
  assigned_.reset();
  state_.over = true;
  over_reason_ = reason;
}

void CoordinatorLink::EndWith(LinkEnd end) {
  if (end_) return;
  state_.over = true;
  over_reason_ = std::string(end.status.message());
  end_ = std::move(end);
}

void CoordinatorLink::Publish() {
  {
    MutexLock lock(&mutex_);
    changed_.NotifyAll();
  }
  TellListener();
  MutexLock lock(&wake_mutex_);
  if (wake_) wake_();
}

void CoordinatorLink::TellListener() {
  MutexLock call(&listener_mutex_);
  if (listener_ == nullptr) return;
  bool over = false;
  std::string reason;
  std::optional<std::string> regroup;
  {
    MutexLock lock(&mutex_);
    over = state_.over;
    reason = over_reason_;
    regroup = regroup_;
  }
  if (over) {
    if (!std::exchange(told_over_, true)) listener_->OnOver(reason);
  } else if (regroup && !std::exchange(told_regroup_, true)) {
    listener_->OnRegroup(*regroup);
  }
}

}  // namespace ringmaster
