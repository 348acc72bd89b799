#include "worker/gloo_communicator.h"

#include <gloo/transport/context.h>
#include <gloo/transport/tcp/device.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "worker/unreachable.h"

namespace ringmaster {
namespace {

// A write to a peer that has gone must be an error, not the end of the process. A handler that
// the program has set stays.
void IgnoreSigpipe() {
  struct sigaction action = {};
  sigaction(SIGPIPE, nullptr, &action);
  if (action.sa_handler != SIG_DFL) return;
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
}

// Gloo waits this many times its timeout for a connection.
constexpr int kGlooPatience = 5;
// Steps are the slots in use.
constexpr uint64_t kUnusedSlot = std::numeric_limits<uint64_t>::max();

std::string AddressKey(int rank, const char* link) {
  return absl::StrCat("gloo/", rank, "/", link);
}

template <typename T>
void Add(const void* addend, size_t count, void* sum) {
  const T* const from = static_cast<const T*>(addend);
  T* const to = static_cast<T*>(sum);
  for (size_t i = 0; i < count; ++i) to[i] += from[i];
}

// Adds `count` elements to those of `sum` from `offset` on.
void AddTo(const void* addend, size_t count, DeviceSpan sum, size_t offset) {
  if (sum.element == Element::kInt64) {
    // Unsigned: the sum wraps.
    Add<uint64_t>(addend, count, sum.integers() + offset);
  } else {
    Add<float>(addend, count, sum.floats() + offset);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<GlooCommunicator>> GlooCommunicator::Create(const Options& options) {
  if (options.world_size < 2 || options.rank < 0 || options.rank >= options.world_size) {
    return absl::InvalidArgumentError(
        absl::StrFormat("rank %d of world size %d: wanted at least two ranks and a rank below the "
                        "world size",
                        options.rank, options.world_size));
  }
  IgnoreSigpipe();
  std::unique_ptr<GlooCommunicator> communicator(new GlooCommunicator(options));
  try {
    RM_RETURN_IF_ERROR(communicator->Open(options));
  } catch (const std::exception& e) {
    return absl::UnavailableError(absl::StrFormat("rank %d of %d cannot open connections on %s: %s",
                                                  options.rank, options.world_size,
                                                  options.listen_address, e.what()));
  }
  return communicator;
}

GlooCommunicator::GlooCommunicator(const Options& options)
    : rank_(options.rank),
      world_size_(options.world_size),
      timeout_(options.timeout),
      left_{"left", (options.rank + options.world_size - 1) % options.world_size, nullptr},
      right_{"right", (options.rank + 1) % options.world_size, nullptr} {}

GlooCommunicator::~GlooCommunicator() = default;

absl::Status GlooCommunicator::Open(const Options& options) {
  const absl::Time deadline = absl::Now() + timeout_;
  const auto device = gloo::transport::tcp::CreateDevice(options.listen_address.c_str());
  for (Link* link : {&left_, &right_}) {
    link->transport = device->createContext(rank_, world_size_);
    link->transport->setTimeout(std::max(absl::ToChronoMilliseconds(timeout_ / kGlooPatience),
                                         std::chrono::milliseconds(1)));
    const auto address = link->transport->createPair(link->peer)->address().bytes();
    RM_RETURN_IF_ERROR(options.store->Set(AddressKey(rank_, link->name),
                                          std::string(address.begin(), address.end())));
  }
  // Connections are made in the order of the rank on their left, on every rank: no circle of ranks
  // can wait for each other.
  const Link& first = rank_ == 0 ? right_ : left_;
  const Link& second = rank_ == 0 ? left_ : right_;
  RM_RETURN_IF_ERROR(Connect(first, options, deadline));
  return Connect(second, options, deadline);
}

absl::Status GlooCommunicator::Connect(const Link& link, const Options& options,
                                       absl::Time deadline) const {
  const char* const other_end = &link == &left_ ? right_.name : left_.name;
  const auto address = options.store->Get(AddressKey(link.peer, other_end), deadline - absl::Now());
  if (!address.ok()) {
    return WithUnreachable(
        absl::Status(address.status().code(),
                     absl::StrFormat("rank %d of %d waits for rank %d to connect: %s", rank_,
                                     world_size_, link.peer, address.status().message())),
        link.peer);
  }
  const Clock::time_point start = Clock::now();
  const auto& pair = link.transport->getPair(link.peer);
  // Closing the connection ends the wait for it.
  const Interrupt::Scope scope(options.interrupt, [&pair] { pair->close(); });
  try {
    pair->connect({address->begin(), address->end()});
  } catch (const std::exception& e) {
    const std::string message = absl::StrFormat("rank %d of %d cannot connect to rank %d: %s",
                                                rank_, world_size_, link.peer, e.what());
    const bool timed_out = Clock::now() - start >= absl::ToChronoNanoseconds(timeout_);
    return WithUnreachable(
        timed_out ? absl::DeadlineExceededError(message) : absl::UnavailableError(message),
        link.peer);
  }
  return absl::OkStatus();
}

absl::Status GlooCommunicator::AllReduceSum(DeviceSpan data) {
  if (aborted_ || failed_) return Failure(nullptr);
  if (data.count == 0) return absl::OkStatus();
  deadline_ = Clock::now() + absl::ToChronoNanoseconds(timeout_);
  try {
    Pin(data);
    if (!(world_size_ == 2 ? Exchange() : RunRing())) return Failure(nullptr);
  } catch (const std::exception& e) {
    return Failure(&e);
  }
  return absl::OkStatus();
}

void GlooCommunicator::Abort() noexcept {
  aborted_ = true;
  MutexLock lock(&mutex_);
  // An abort ends the wait that is going on, or the next one. Buffers that are made later are not
  // waited for: aborted_ is looked at before each wait.
  for (Buffer* buffer : {incoming_.get(), addends_[0].get(), addends_[1].get()}) {
    if (buffer != nullptr) buffer->abortWaitRecv();
  }
  if (outgoing_ != nullptr) outgoing_->abortWaitSend();
}

// A training step reduces the same buffer again and again: it is made known to Gloo once.
void GlooCommunicator::Pin(DeviceSpan data) {
  if (data == data_) return;
  data_ = data;
  MakeBuffer(right_, data.data, data.bytes(), &outgoing_);
  MakeBuffer(left_, data.data, data.bytes(), &incoming_);
  // A world of two adds once, all of it.
  const int addends = world_size_ == 2 ? 1 : 2;
  const size_t longest = world_size_ == 2 ? data.count : data.count / world_size_ + 1;
  const size_t bytes = BytesOf(longest);
  for (int i = 0; i < addends; ++i) {
    if (scratch_[i].size() >= bytes) continue;
    scratch_[i].resize(bytes);
    MakeBuffer(left_, scratch_[i].data(), bytes, &addends_[i]);
  }
}

// Gloo tells a lost connection to the transfers that wait for their turn, and forgets the one that
// is half done: its wait would last until the timeout. So each buffer also waits, on a slot that
// nobody sends to, for its connection to be lost; that error ends the waits for its transfers too.
void GlooCommunicator::MakeBuffer(const Link& link, void* data, size_t bytes,
                                  std::unique_ptr<Buffer>* buffer) {
  MutexLock lock(&mutex_);
  *buffer = link.transport->createUnboundBuffer(data, bytes);
  (*buffer)->recv(link.peer, kUnusedSlot, 0, 0);
}

bool GlooCommunicator::Exchange() {
  const Chunk whole{0, data_.count};
  addends_[0]->recv(left_.peer, 0, 0, data_.bytes());
  Send(whole, 0);
  // Adding overwrites what is being sent: the sending must be over.
  if (aborted_ || !addends_[0]->waitRecv(nullptr, TimeLeft()) || !FinishSend(whole)) return false;
  AddTo(scratch_[0].data(), data_.count, data_, 0);
  return true;
}

// In step s of the ring, rank r sends chunk r - s to the right and receives chunk r - s - 1 from
// the left (modulo world_size): in the first world_size - 1 steps to add it, then to keep it.
bool GlooCommunicator::RunRing() {
  const int steps = 2 * (world_size_ - 1);
  PostReceive(0);
  for (int step = 0; step < steps; ++step) {
    // Gloo sends to a buffer that waits for it: have one waiting when the left rank gets there.
    if (step + 1 < steps) PostReceive(step + 1);
    const Chunk sent = ChunkAt(rank_ - step);
    Send(sent, step);
    if (!FinishReceive(step) || !FinishSend(sent)) return false;
  }
  return true;
}

GlooCommunicator::Chunk GlooCommunicator::ChunkAt(int index) const {
  const size_t i = (index + 2 * world_size_) % world_size_;  // index > -2 * world_size
  const size_t begin = data_.count * i / world_size_;
  return {begin, data_.count * (i + 1) / world_size_ - begin};
}

// Chunks are empty where there are more ranks than elements: both ends know, and nothing is sent.
void GlooCommunicator::Send(Chunk chunk, int step) {
  if (chunk.count == 0) return;
  outgoing_->send(right_.peer, step, BytesOf(chunk.offset), BytesOf(chunk.count));
}

bool GlooCommunicator::FinishSend(Chunk chunk) {
  return chunk.count == 0 || (!aborted_ && outgoing_->waitSend(nullptr, TimeLeft()));
}

void GlooCommunicator::PostReceive(int step) {
  const Chunk chunk = ChunkAt(rank_ - step - 1);
  if (chunk.count == 0) return;
  const size_t bytes = BytesOf(chunk.count);
  if (IsReducing(step)) {
    addends_[step % 2]->recv(left_.peer, step, 0, bytes);
  } else {
    // May be posted early: the sum comes only after this rank has sent its own part of it.
    incoming_->recv(left_.peer, step, BytesOf(chunk.offset), bytes);
  }
}

bool GlooCommunicator::FinishReceive(int step) {
  const Chunk chunk = ChunkAt(rank_ - step - 1);
  if (chunk.count == 0) return true;
  Buffer& buffer = IsReducing(step) ? *addends_[step % 2] : *incoming_;
  if (aborted_ || !buffer.waitRecv(nullptr, TimeLeft())) return false;
  if (IsReducing(step)) AddTo(scratch_[step % 2].data(), chunk.count, data_, chunk.offset);
  return true;
}

std::chrono::milliseconds GlooCommunicator::TimeLeft() const {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline_ - Clock::now());
  return std::max(left, std::chrono::milliseconds(1));
}

void GlooCommunicator::Close() {
  failed_ = true;
  MutexLock lock(&mutex_);
  // From here on Gloo's thread neither reads nor writes the caller's memory.
  for (auto* buffer : {&outgoing_, &incoming_, &addends_[0], &addends_[1]}) buffer->reset();
  // Closing waits for a turn of Gloo's event loop, up to 10 ms: too long for an abort.
  closed_ = std::async(std::launch::async, [left = left_, right = right_] {
    for (const Link& link : {left, right}) link.transport->getPair(link.peer)->close();
  });
}

absl::Status GlooCommunicator::Failure(const std::exception* cause) {
  const bool timed_out = Clock::now() >= deadline_;
  const bool failed_before = failed_;
  if (!failed_before) Close();
  const std::string place = absl::StrFormat("all-reduce on rank %d of %d", rank_, world_size_);
  if (aborted_) return absl::AbortedError(absl::StrCat(place, ": aborted"));
  if (failed_before) return absl::UnavailableError(absl::StrCat(place, ": has failed before"));
  const std::string what = cause == nullptr ? "" : cause->what();
  if (timed_out) {
    return absl::DeadlineExceededError(
        absl::StrFormat("%s: rank %d or %d did not answer within %s: %s", place, left_.peer,
                        right_.peer, absl::FormatDuration(timeout_), what));
  }
  return absl::UnavailableError(
      absl::StrFormat("%s: lost rank %d or %d: %s", place, left_.peer, right_.peer, what));
}

}  // namespace ringmaster
