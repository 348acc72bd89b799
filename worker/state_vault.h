// What a process leaves behind for its successor, in memory that outlives it: a memfd that the
// agent made, one per local rank, which both inherit. A process that has to end without having
// handed in its state (a collective that cannot be aborted) saves it here and is started anew.
//
// Layout, in the machine's own byte order: a header (StateVault::Header), then parameters, moments
// and records, with nothing between them. The header's mark is written last and taken away first:
// a process killed while saving leaves nothing, never a mix of two states.
//
// Thread safety: for one thread, and for one process at a time (the successor of a dead one).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model.h"
#include "common/unique_fd.h"

namespace ringmaster {

struct VaultedState {
  uint64_t generation = 0;  // that computed the state
  uint64_t position = 0;    // records before the next thing to do (common/timeline.h)
  TrainState state;
  std::string records;  // those the coordinator has not acknowledged, as their owner encodes them

  friend bool operator==(const VaultedState&, const VaultedState&) = default;
};

class StateVault {
 public:
  // For the agent: new and empty. Codes: those of memfd_create.
  static absl::StatusOr<StateVault> Create();
  // For a process: what the agent made and it inherited. INVALID_ARGUMENT: not a file in memory.
  static absl::StatusOr<StateVault> Open(int fd);

  int fd() const { return fd_.get(); }

  // Replaces what is there. RESOURCE_EXHAUSTED: memory is short; nothing is there then.
  absl::Status Save(const VaultedState& vaulted);
  // What the last Save left; nullopt if there was none, it did not finish, or Clear came after it.
  // DATA_LOSS: what is there is not what Save wrote.
  absl::StatusOr<std::optional<VaultedState>> Load();
  void Clear();

 private:
  struct Header;

  explicit StateVault(UniqueFd fd) : fd_(std::move(fd)) {}

  UniqueFd fd_;
};

}  // namespace ringmaster
