// Builds the communicator of a generation.
//
// Thread safety: plain functions; they block until every rank has come.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/communicator.h"
#include "worker/device.h"
#include "worker/interrupt.h"
#include "worker/key_value_store.h"

namespace ringmaster {

struct RendezvousOptions {
  int rank = 0;
  int world_size = 1;
  absl::Duration timeout = absl::Seconds(60);
  std::string listen_address;  // IP address that the peers reach this process at
  const Device* device = nullptr;
  Backend* backend = nullptr;
  KeyValueStore* store = nullptr;  // obeys the same interrupt
  Interrupt* interrupt = nullptr;  // may be null
};

// One rank: solo. GPUs: NCCL, with an id made by rank 0 and carried by the store. CPU: Gloo.
// Codes as Communicator::AllReduceSum and KeyValueStore::Get; ABORTED soon after the interrupt. The
// ranks that could not be reached, where they are known, are the payload of the error
// (worker/unreachable.h).
absl::StatusOr<std::unique_ptr<Communicator>> Rendezvous(const RendezvousOptions& options);

}  // namespace ringmaster
