#include "tests/simulation/connection.h"

#include <utility>

namespace ringmaster {

Connection::Connection(EventQueue* queue, Random* random, Worker* worker, Coordinator* coordinator,
                       std::vector<Peer>* peers)
    : queue_(queue),
      random_(random),
      worker_(worker),
      coordinator_(coordinator),
      life_(coordinator->life()),
      peer_(PeerPtr(), &peers->emplace_back(this)) {}

void Connection::Peer::Send(CoordinatorMessage message) {
  Connection* const connection = connection_;
  if (!connection->coordinator_open_ || !connection->coordinator_->OnSent(message)) return;
  connection->Push(&connection->down_, [connection, message = std::move(message)] {
    if (connection->worker_open_) connection->worker_->OnMessage(connection, message);
  });
}

void Connection::Peer::ReadNext() {
  connection_->reading_ = true;
  connection_->Read();
}

void Connection::Peer::Close(const absl::Status& status) {
  Connection* const connection = connection_;
  if (!connection->coordinator_open_ || connection->coordinator_->IsDying()) return;
  connection->coordinator_open_ = false;
  connection->PushEnd(status);
  connection->queue_->After(connection->Delay(), [connection] {
    connection->closed_ = true;
    connection->unread_.clear();
    connection->reading_ = true;
    connection->Read();
  });
}

void Connection::Send(WorkerMessage message) {
  if (!worker_open_) return;
  Push(&up_, [this, message = std::move(message)] {
    if (!coordinator_open_ || !coordinator_->HasLife(life_)) return;
    unread_.push_back(message);
    Read();
  });
}

void Connection::CloseByWorker() {
  if (!std::exchange(worker_open_, false)) return;
  PushClosed();
}

void Connection::CloseByDeath() {
  if (!std::exchange(coordinator_open_, false)) return;
  PushEnd(absl::UnavailableError("the coordinator has gone"));
}

void Connection::Break() {
  if (silent_) return;
  up_.items.clear();
  down_.items.clear();
  coordinator_open_ = false;
  PushEnd(absl::UnavailableError("the connection broke"));
  PushClosed();
}

void Connection::Resume() {
  Move(&up_);
  Move(&down_);
}

absl::Duration Connection::Delay() {
  return random_->Chance(4) ? random_->Milliseconds(5, 200)
                            : random_->Between(absl::Microseconds(100), absl::Milliseconds(3));
}

void Connection::Push(Pipe* pipe, std::function<void()> item) {
  pipe->items.push_back(std::move(item));
  Move(pipe);
}

// What is cut off waits; what is silent never comes.
void Connection::Move(Pipe* pipe) {
  if (pipe->moving || pipe->items.empty() || silent_ || worker_->IsCut()) return;
  pipe->moving = true;
  queue_->After(Delay(), [this, pipe] {
    pipe->moving = false;
    if (pipe->items.empty() || silent_ || worker_->IsCut()) return;
    const auto item = std::move(pipe->items.front());
    pipe->items.pop_front();
    item();
    Move(pipe);
  });
}

void Connection::PushEnd(const absl::Status& status) {
  Push(&down_, [this, status] {
    if (!std::exchange(worker_open_, false)) return;
    worker_->OnEnd(this, status);
  });
}

void Connection::PushClosed() {
  Push(&up_, [this] {
    closed_ = true;
    Read();
  });
}

void Connection::Read() {
  if (!coordinator_->HasLife(life_) || told_closed_) return;
  if (reading_ && !unread_.empty()) {
    reading_ = false;
    WorkerMessage message = std::move(unread_.front());
    unread_.pop_front();
    coordinator_->OnMessage(peer_, std::move(message));
  } else if (closed_ && unread_.empty()) {
    told_closed_ = true;
    coordinator_open_ = false;
    coordinator_->OnClosed(peer_);
  }
}

}  // namespace ringmaster
