// InMemoryStore: a KeyValueStore for ranks that are threads of one process.
//
// Thread safety: safe from several threads.
#pragma once

#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/mutex.h"
#include "worker/key_value_store.h"

namespace ringmaster {

class InMemoryStore : public KeyValueStore {
 public:
  absl::Status Set(const std::string& key, const std::string& value) override {
    MutexLock lock(&mutex_);
    const auto [entry, is_new] = values_.emplace(key, value);
    if (!is_new && entry->second != value) return absl::AlreadyExistsError(key);
    changed_.NotifyAll();
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override {
    const auto deadline = std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(timeout);
    MutexLock lock(&mutex_);
    for (;;) {
      if (const auto entry = values_.find(key); entry != values_.end()) return entry->second;
      if (over_) return absl::FailedPreconditionError("the generation is over");
      if (std::chrono::steady_clock::now() >= deadline) {
        return absl::DeadlineExceededError(absl::StrCat("nobody set the key '", key, "'"));
      }
      changed_.WaitUntil(&mutex_, deadline);
    }
  }

  // Ends the generation: whoever waits gets FAILED_PRECONDITION.
  void End() {
    MutexLock lock(&mutex_);
    over_ = true;
    changed_.NotifyAll();
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::map<std::string, std::string> values_ ABSL_GUARDED_BY(mutex_);
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace ringmaster
