#include "tests/simulation/exchange.h"

#include <algorithm>

namespace ringmaster {

void Exchange::Arrive(uint64_t generation, uint32_t world_size, uint32_t rank, Member* member,
                      uint64_t position, bool flag) {
  Group& group = groups_[generation];
  group.world_size = world_size;
  group.arrivals[rank] = {member, position, flag, true};
  for (const uint32_t gone : group.gone) {
    if (group.gone_quietly.count(gone) == 0) TellGone(generation, rank, gone);
  }
  Complete(generation);
}

void Exchange::Complete(uint64_t generation) {
  Group& group = groups_[generation];
  if (!group.gone.empty() || group.arrivals.size() < group.world_size) return;
  const uint64_t position = group.arrivals.begin()->second.position;
  bool flag = false;
  for (const auto& [rank, arrival] : group.arrivals) {
    if (!arrival.waits) return;
    if (group.world_size > 1 && arrival.member->IsCutFromPeers()) return;
    if (arrival.position != position) {
      trace_->Violate("ranks of generation ", generation, " are at records ", position, " and ",
                      arrival.position);
      return;
    }
    flag = flag || arrival.flag;
  }
  for (auto& [rank, arrival] : group.arrivals) {
    arrival.waits = false;
    queue_->After(random_->Between(absl::Microseconds(50), absl::Milliseconds(2)),
                  [this, generation, rank = rank, position, flag] {
                    Finish(generation, rank, position, flag);
                  });
  }
}

// Who has not finished when another one goes may have missed its part, or not.
void Exchange::Finish(uint64_t generation, uint32_t rank, uint64_t position, bool flag) {
  Group& group = groups_[generation];
  if (group.gone.count(rank) > 0) return;
  Arrival& arrival = group.arrivals[rank];
  if (!group.gone.empty() && random_->Chance(50)) {
    arrival.waits = true;
    return TellGone(generation, rank, *group.gone.begin());
  }
  arrival.member->OnExchanged(generation, position, flag);
}

void Exchange::TellGone(uint64_t generation, uint32_t rank, uint32_t gone) {
  queue_->After(random_->Milliseconds(1, 300), [this, generation, rank, gone] {
    const Group& group = groups_[generation];
    const Arrival& arrival = group.arrivals.at(rank);
    if (!arrival.waits || group.gone.count(rank) > 0) return;
    arrival.member->OnBroken(generation, gone);
  });
}

void Exchange::Leave(uint64_t generation, uint32_t rank, bool quietly) {
  Group& group = groups_[generation];
  if (!group.gone.insert(rank).second) return;
  if (quietly) group.gone_quietly.insert(rank);
  if (quietly) return;
  for (const auto& [other, arrival] : group.arrivals) {
    if (arrival.waits && group.gone.count(other) == 0) TellGone(generation, other, rank);
  }
}

void Exchange::Resume() {
  for (auto& [generation, group] : groups_) Complete(generation);
}

}  // namespace ringmaster
