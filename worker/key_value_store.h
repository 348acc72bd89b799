// KeyValueStore: how the ranks of one generation find each other. Served by the coordinator.
//
// Thread safety: safe from several threads.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace ringmaster {

class KeyValueStore {
 public:
  virtual ~KeyValueStore() = default;

  // Stores `value` under `key`. FAILED_PRECONDITION: the generation is over. Setting a key twice
  // to different values is ALREADY_EXISTS.
  virtual absl::Status Set(const std::string& key, const std::string& value) = 0;

  // Waits until `key` is set and returns its value. DEADLINE_EXCEEDED after `timeout`;
  // FAILED_PRECONDITION: the generation is over.
  virtual absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) = 0;
};

}  // namespace ringmaster
