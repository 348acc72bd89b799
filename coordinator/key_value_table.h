// KeyValueTable: the keys through which the ranks of one generation find each other. In memory.
//
// Waiting is by callback: no thread is held. Thread safety: safe from several threads; callbacks
// run on the thread that brings the answer, with no lock held.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/mutex.h"

namespace ringmaster {

class KeyValueTable {
 public:
  static constexpr size_t kMaxKeyBytes = 1024;
  static constexpr size_t kMaxValueBytes = 1 << 20;
  static constexpr size_t kMaxKeys = 65536;
  // Of all values together.
  static constexpr size_t kMaxTotalBytes = 256 << 20;

  using Answer = std::function<void(absl::StatusOr<std::string>)>;
  using Ticket = uint64_t;

  // Starts `generation`: forgets every key; whoever waits gets FAILED_PRECONDITION.
  void Begin(uint64_t generation);

  //   FAILED_PRECONDITION  another generation than the current one
  //   ALREADY_EXISTS       the key holds another value
  //   RESOURCE_EXHAUSTED   past one of the limits
  absl::Status Set(uint64_t generation, const std::string& key, const std::string& value);

  // Calls `answer` exactly once: with the value when the key is set (at once, if it is), or with
  // FAILED_PRECONDITION for another generation than the current one or when that ends, or with
  // RESOURCE_EXHAUSTED when too many wait. The ticket is for Cancel.
  Ticket Get(uint64_t generation, const std::string& key, Answer answer);

  // Answers CANCELLED if the ticket still waits.
  void Cancel(Ticket ticket);

 private:
  struct Waiter {
    std::string key;
    Answer answer;
  };

  absl::Status CheckGeneration(uint64_t generation) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Store(const std::string& key, const std::string& value)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Mutex mutex_;
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::string, std::string> values_ ABSL_GUARDED_BY(mutex_);
  size_t total_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  Ticket last_ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<Ticket, Waiter> waiters_ ABSL_GUARDED_BY(mutex_);
  std::multimap<std::string, Ticket> waiting_for_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ringmaster
