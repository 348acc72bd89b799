// ChaosPlan: what `ringmaster chaos` breaks, in which order, and when: a pure function of the text
// the user gave and a seed, so that a run can be broken again in the same way.
//
// Thread safety: plain values and pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace ringmaster {

enum class Fault {
  kKill,             // SIGKILL to a worker process
  kHang,             // SIGSTOP to a worker process, SIGCONT later
  kPartition,        // a worker process is cut off from everybody, later connected again
  kKillCoordinator,  // SIGKILL to the coordinator
  kKillReplay,       // the same, and again to its successor within milliseconds of its start
  kKillAll,          // SIGKILL to the coordinator and every worker process at once
};

// "kill", "hang", "partition", "kill-coordinator", "kill-replay", "kill-all".
std::string FaultName(Fault fault);

// How many of each, and how fast.
struct ChaosSpec {
  struct Count {
    Fault fault;
    int count;
    friend bool operator==(const Count&, const Count&) = default;
  };
  std::vector<Count> counts;  // in the order of enum Fault; only those asked for
  absl::Duration every = absl::Seconds(1);
  absl::Duration hang_for = absl::Seconds(5);  // longer than the default --patience
  absl::Duration cut_for = absl::Seconds(5);
};

// Reads "kill:200,hang:3,every:0.7". INVALID_ARGUMENT: what is wrong, and what there is.
absl::StatusOr<ChaosSpec> ParseChaosSpec(const std::string& text);

// What a spec may hold, as lines for --help.
std::string ChaosSpecHelp();

struct ChaosAction {
  Fault fault = Fault::kKill;
  // From the end of the action before: one thing is broken at a time, but nobody waits for the run
  // to have recovered from it.
  absl::Duration wait;
  // Which member, in thousandths of the list of those that can be broken: MemberIndex().
  uint32_t pick = 0;
  // kKillReplay: how old its successor becomes.
  absl::Duration successor_age;

  friend bool operator==(const ChaosAction&, const ChaosAction&) = default;
};

// All actions of `spec`, in an order and with waits that `seed` decides. Waits are exponentially
// distributed with mean spec.every, as those between independent failures, in whole milliseconds.
std::vector<ChaosAction> PlanChaos(const ChaosSpec& spec, uint64_t seed);

// The place in a list of `count` members that `pick` means; count > 0.
inline uint32_t MemberIndex(uint32_t pick, uint32_t count) { return pick * count / 1000; }

// The plan in lines for people: "+0.731s kill@734" is a kill 0.731 s after the end of the action
// before, of the member at 0.734 of the list.
std::vector<std::string> PlanLines(const std::vector<ChaosAction>& plan);

}  // namespace ringmaster
