// Exchange: the workers' own data plane, on which they finish steps together.
//
// A step is finished once all ranks of a generation have come to it. When one of them goes then,
// some of the others have finished it and some have not; who still waits is told, if the network
// tells anything. Thread safety: none.
#pragma once

#include <cstdint>
#include <map>
#include <set>

#include "tests/simulation/event_queue.h"
#include "tests/simulation/random.h"
#include "tests/simulation/trace.h"

namespace ringmaster {

class Exchange {
 public:
  class Member {
   public:
    virtual ~Member() = default;
    // The step at `position` of `generation` is finished. `flag`: some rank had raised one.
    virtual void OnExchanged(uint64_t generation, uint64_t position, bool flag) = 0;
    // Rank `gone` left, or cannot be reached.
    virtual void OnBroken(uint64_t generation, uint32_t gone) = 0;
    // Nothing gets through between it and the other members.
    virtual bool IsCutFromPeers() const = 0;
  };

  Exchange(EventQueue* queue, Random* random, Trace* trace)
      : queue_(queue), random_(random), trace_(trace) {}

  // `rank` of `world_size` has come to the step at `position`.
  void Arrive(uint64_t generation, uint32_t world_size, uint32_t rank, Member* member,
              uint64_t position, bool flag);
  // It has left the generation before the end of a step: it died, or gave up. Those that wait are
  // told, unless it left `quietly` (its host is gone). Who stops at an agreed step need not say so.
  void Leave(uint64_t generation, uint32_t rank, bool quietly);
  // Networks that were cut are whole again.
  void Resume();

 private:
  struct Arrival {
    Member* member = nullptr;
    uint64_t position = 0;
    bool flag = false;
    bool waits = false;
  };
  struct Group {
    uint32_t world_size = 0;
    std::map<uint32_t, Arrival> arrivals;  // by rank
    std::set<uint32_t> gone;
    std::set<uint32_t> gone_quietly;
  };
  void Complete(uint64_t generation);
  void Finish(uint64_t generation, uint32_t rank, uint64_t position, bool flag);
  void TellGone(uint64_t generation, uint32_t rank, uint32_t gone);

  EventQueue* const queue_;
  Random* const random_;
  Trace* const trace_;
  std::map<uint64_t, Group> groups_;
};

}  // namespace ringmaster
