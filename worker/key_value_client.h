// The coordinator's key-value service as a KeyValueStore, for one generation.
//
// Thread safety: safe from several threads.
#pragma once

#include <memory>
#include <string>

#include "proto/training.grpc.pb.h"
#include "worker/interrupt.h"
#include "worker/key_value_store.h"

namespace ringmaster {

class KeyValueClient : public KeyValueStore {
 public:
  // Borrows the stub and the interrupt, which may be null. From either method, UNAVAILABLE: the
  // coordinator cannot be reached. CANCELLED: the interrupt was triggered.
  KeyValueClient(KeyValue::StubInterface* stub, std::string run_id, uint64_t generation,
                 Interrupt* interrupt);

  absl::Status Set(const std::string& key, const std::string& value) override;
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override;

 private:
  KeyValue::StubInterface* const stub_;
  const std::string run_id_;
  const uint64_t generation_;
  Interrupt* const interrupt_;
};

}  // namespace ringmaster
