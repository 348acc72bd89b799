// Checker: what must hold at every moment of a run, whatever fails.
//
//   - one owner: a rank of a generation makes progress in one process only, and all of a
//     generation's assignments agree
//   - generation numbers grow, over all lives of the coordinator
//   - what is promised (acknowledged) survives every death of the coordinator
//   - the ledger is the lineage: each record in it was computed by the generation it names, and the
//     final state is what they lead to
//   - at the end every sample of every epoch was counted exactly once
//
// Violations go to the trace. Thread safety: none.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "coordinator/run_state.h"
#include "proto/training.pb.h"
#include "tests/simulation/trace.h"

namespace ringmaster {

class Checker {
 public:
  explicit Checker(Trace* trace) : trace_(trace) {}

  // The coordinator, in its `life`, sends this.
  void OnSent(uint64_t life, const CoordinatorMessage& message);
  // A process has finished a step as this rank.
  void OnStep(uint64_t generation, uint32_t rank, uint64_t incarnation);
  // A coordinator starts with what its disk holds.
  void OnRestored(const RunState& state);
  // A turn of the coordinator is over.
  void OnTurn(const RunState& state);
  // The run has ended well.
  void OnSuccess(const RunState& state);

 private:
  void CheckLineage(const RunState& state);
  void Promise(uint64_t generation, uint64_t records) { promised_ = {generation, records}; }

  struct Formed {
    uint64_t life = 0;
    std::string assignment;  // without what differs by rank
  };
  Trace* const trace_;
  std::map<uint64_t, Formed> formed_;
  std::map<std::pair<uint64_t, uint32_t>, uint64_t> owners_;
  std::pair<uint64_t, uint64_t> promised_;  // generation, records
  std::pair<uint64_t, uint64_t> checked_;   // generation, ledger's size
};

}  // namespace ringmaster
