// Scenario: what one seed simulates; and the ways in which Ringmaster can be broken on purpose, to
// show that the simulation would notice.
//
// Thread safety: plain values and pure functions.
#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "common/settings.h"
#include "coordinator/membership.h"
#include "proto/training.pb.h"
#include "tests/simulation/random.h"

namespace ringmaster {

// All are made around the coordinator, not inside it.
enum class Mutation {
  kNone,
  kLyingDisk,           // the journal's commits sync nothing
  kAcksBeforeCommit,    // a turn's commit is made in the next turn, after its messages went out
  kNoFencing,           // what comes of an old generation is taken for one of the present one
  kNoDeduplication,     // a record that came before is taken for the next one
  kNoGrace,             // a coordinator that was started anew waits for nobody
  kRecordsFromIgnored,  // whoever has a state is taken to have all of its records
};

struct Scenario {
  TrainingConfig config;
  MembershipOptions membership;
  uint32_t nodes = 0;
  uint32_t processes_per_node = 0;
  absl::Duration slowest_step;
  // What goes wrong: so many faults, so far apart on average.
  uint32_t faults = 0;
  absl::Duration between_faults;
  // Nothing but the coordinator ever fails, and it is back soon: nobody may notice.
  bool only_coordinator_dies = false;
  uint32_t checkpoint_every_steps = 0;
};

Scenario MakeScenario(Random* random);
std::string Describe(const Scenario& scenario);

}  // namespace ringmaster
