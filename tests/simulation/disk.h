// The simulated disk of the coordinator: it survives its deaths, with what was made durable.
//
// Thread safety: none.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/journal.h"
#include "coordinator/run.h"
#include "tests/simulation/event_queue.h"
#include "tests/simulation/random.h"
#include "tests/simulation/scenario.h"
#include "tests/simulation/trace.h"

namespace ringmaster {

class Disk {
 public:
  enum class Death { kNone, kBeforeCommit, kAfterCommit };

  Disk(EventQueue* queue, Random* random, Trace* trace, Mutation mutation);

  // ---- for the coordinator that lives
  std::unique_ptr<Journal> OpenJournal();
  std::unique_ptr<StateWriter> OpenWriter();
  // The newest checkpoint that the run of `state` could go on from; null if there is none.
  StoredStatePtr LoadStored(const RunState& state) const;

  // ---- for what goes wrong
  void SetFull(bool full);
  bool full() const { return full_; }
  // The coordinator dies at its next commit: just before it, or just after it.
  void DieAtCommit(Death death) { death_ = death; }
  // It has died there: nothing that it does counts any more.
  bool died() const { return died_; }
  // The coordinator has died. Returns what its journal holds; what was being written is lost.
  std::vector<std::string> Crash();

 private:
  class SimJournal;
  class SimWriter;
  struct Checkpoint {
    StoredStatePtr state;
    bool damaged = false;
  };

  EventQueue* const queue_;
  Random* const random_;
  Trace* const trace_;
  const Mutation mutation_;
  MemoryJournal journal_;
  std::vector<Checkpoint> checkpoints_;
  bool full_ = false;
  Death death_ = Death::kNone;
  bool died_ = false;
  uint64_t life_ = 0;  // of what is written
};

}  // namespace ringmaster
