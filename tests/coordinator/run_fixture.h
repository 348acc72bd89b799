// A run to test with: a small model and data set, settings that make it form at once.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "common/model.h"
#include "coordinator/journal.h"
#include "coordinator/run.h"
#include "coordinator/run_config.h"
#include "tests/coordinator/records.h"

namespace ringmaster {

// 2 * 2 + 2 parameters; two epochs of two steps (records.h).
inline RunOptions SmallRunOptions(CountRange workers) {
  RunOptions options;
  options.incarnation = 42;
  options.model = ModelOf(SmallConfig());
  options.membership.workers = workers;
  options.membership.version = "1.0";
  options.membership.data_digest = SmallConfig().data_digest();
  return options;
}

inline RunState SmallRunState(absl::Time now, uint64_t base = 0) {
  return RunState("run-1", "1.0", SmallConfig(), now, base);
}

// A journal that begins with `state`.
inline std::unique_ptr<MemoryJournal> JournalOf(const RunState& state) {
  auto journal = std::make_unique<MemoryJournal>();
  journal->Rotate(state.Snapshot().SerializeAsString()).IgnoreError();
  return journal;
}

inline WorkerMessage HelloMessage(uint32_t local_rank, uint32_t local_world_size) {
  WorkerMessage message;
  Hello* hello = message.mutable_hello();
  hello->set_incarnation(100 + local_rank);
  hello->set_node_id("a-1");
  hello->set_host("a");
  hello->set_pid(static_cast<int32_t>(1000 + local_rank));
  hello->set_local_rank(local_rank);
  hello->set_local_world_size(local_world_size);
  hello->set_device(CPU);
  hello->set_version("1.0");
  hello->set_data_digest(SmallConfig().data_digest());
  return message;
}

inline TrainState SmallState(uint64_t step) {
  TrainState state = InitialState(ModelOf(SmallConfig()), 7);
  state.parameters[0] += static_cast<float>(step);
  state.step = step;
  return state;
}

// The state at record `position` of the timeline, with as many updates as there are before it.
inline StoredStatePtr StoredAt(uint64_t generation, uint64_t position) {
  const Timeline timeline(2, 2);
  StoredState stored;
  stored.generation = generation;
  stored.position = ToProto(timeline, position);
  stored.state = SmallState(timeline.UpdatesBefore(position));
  stored.digest = StateSha256(stored.state);
  return std::make_shared<const StoredState>(std::move(stored));
}

}  // namespace ringmaster
