// Recovery: which state a new generation goes on from.
//
// The best is the most advanced state that lies on the lineage and whose records can all be had:
// usually that of the survivors, who have lost nothing; else the one the coordinator holds; else
// the beginning. Who has the records that the coordinator still lacks becomes rank 0.
//
// Thread safety: a pure function.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/ledger.h"
#include "coordinator/membership.h"

namespace ringmaster {

// A state that somebody has.
struct StateOffer {
  uint64_t generation = 0;    // that computed it; 0: it was loaded when the run was begun
  uint64_t position = 0;      // a count of records
  uint64_t records_from = 0;  // the oldest record its holder can send
  std::string digest;
};

struct RecoveryPlan {
  uint64_t position = 0;
  std::string digest;  // empty: the initial state
  // The member that holds it and is to be rank 0; nullopt: the coordinator holds it, or it is the
  // initial state, and anybody may be.
  std::optional<MemberId> holder;
  // Some candidate has another state: the coordinator must hold it to serve it.
  bool must_serve = false;
  std::string reason;  // for people
};

// `members`: what each candidate of the next generation holds (nullopt: nothing). `stored`: what
// the coordinator can serve, if it holds anything.
//   DATA_LOSS            two hold different states of the same position, which are therefore not
//                        the same training any more
//   FAILED_PRECONDITION  the run was begun from a checkpoint, and nobody holds its state any more
absl::StatusOr<RecoveryPlan> PlanRecovery(
    const Ledger& ledger,
    const std::vector<std::pair<MemberId, std::optional<StateOffer>>>& members,
    const std::optional<StateOffer>& stored);

}  // namespace ringmaster
