// A run to test with: a small model and data set, settings that make it form at once.
#pragma once

#include <string>
#include <vector>

#include "common/model.h"
#include "coordinator/run.h"
#include "coordinator/run_config.h"
#include "tests/coordinator/records.h"

namespace ringmaster {

// 2 * 2 + 2 parameters; two epochs of two steps (records.h).
inline RunOptions SmallRunOptions(int workers) {
  RunOptions options;
  options.run_id = "run-1";
  options.incarnation = 42;
  options.config = SmallConfig();
  options.model = ModelOf(options.config);
  options.membership.workers = {workers, workers};
  options.membership.version = "1.0";
  options.membership.data_digest = options.config.data_digest();
  return options;
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

}  // namespace ringmaster
