// Training state on its way: put together from the chunks of PutState, kept, and cut up again for
// GetState.
//
// Thread safety: a StateAssembler is for one thread; a StateStore is safe from several; a stored
// state never changes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model.h"
#include "common/mutex.h"
#include "proto/training.pb.h"

namespace ringmaster {

struct StoredState {
  uint64_t generation = 0;
  Position position;  // the state before this is done
  TrainState state;
  std::string digest;  // StateSha256(state)
};
using StoredStatePtr = std::shared_ptr<const StoredState>;

// Takes the chunks of one PutState, in order. Never holds more than the model's state.
class StateAssembler {
 public:
  explicit StateAssembler(size_t num_parameters) : num_parameters_(num_parameters) {}

  // INVALID_ARGUMENT: the state is of another model, or longer than it may be.
  absl::Status Append(const StateChunk& chunk);
  // After the last chunk. INVALID_ARGUMENT: bytes are missing; DATA_LOSS: the digest is another.
  absl::StatusOr<StoredStatePtr> Finish();

 private:
  size_t wanted_bytes() const { return 3 * num_parameters_ * sizeof(float); }

  const size_t num_parameters_;
  bool started_ = false;
  StoredState stored_;
  std::string bytes_;
};

// Cuts a state into chunks, for as long as Next() returns true.
class StateChunker {
 public:
  StateChunker(std::string run_id, StoredStatePtr stored)
      : run_id_(std::move(run_id)), stored_(std::move(stored)) {}
  // Fills `chunk` with the next part. False when there is none.
  bool Next(StateChunk* chunk);

 private:
  const std::string run_id_;
  const StoredStatePtr stored_;
  size_t sent_ = 0;  // bytes
};

// The states that can be served: the last two that came.
class StateStore {
 public:
  void Put(StoredStatePtr stored);
  // The one with this digest; null if it is not here.
  StoredStatePtr Find(const std::string& digest) const;
  // The one that came last; null before the first.
  StoredStatePtr newest() const;

 private:
  mutable Mutex mutex_;
  StoredStatePtr newest_ ABSL_GUARDED_BY(mutex_);
  StoredStatePtr before_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ringmaster
