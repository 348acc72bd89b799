#include "tests/simulation/scenario.h"

#include "absl/strings/str_cat.h"

namespace ringmaster {
namespace {

TrainingConfig MakeConfig(Random* random) {
  TrainingConfig config;
  config.add_layers(1);
  config.set_seed(random->Next());
  config.set_num_train_samples(static_cast<uint32_t>(random->Between(9, 12)));
  config.set_num_test_samples(3);
  config.set_global_batch(4);
  config.set_epochs(static_cast<uint32_t>(random->Between(2, 3)));
  return config;
}

MembershipOptions MakeMembership(Random* random, Scenario* scenario) {
  MembershipOptions options;
  options.version = "1";
  options.data_digest = "data";
  options.join_timeout = absl::Hours(24);
  // Also after the last fault: whoever is hurt may still break a few generations.
  options.fruitless_limit = 30;
  scenario->processes_per_node = random->Chance(30) ? 2 : 1;
  scenario->nodes =
      static_cast<uint32_t>(random->Between(1, scenario->processes_per_node == 2 ? 2 : 4));
  const bool count_workers = random->Chance(60);
  const int most = static_cast<int>(scenario->nodes) *
                   (count_workers ? static_cast<int>(scenario->processes_per_node) : 1);
  CountRange range{most, most};
  if (random->Chance(60)) range.min = static_cast<int>(random->Between(1, most));
  if (random->Chance(40)) range.max += 1;
  (count_workers ? options.workers : options.nodes) = range;
  if (random->Chance(5)) options.max_failures = static_cast<int>(random->Between(0, 2));
  return options;
}

}  // namespace

Scenario MakeScenario(Random* random) {
  Scenario scenario;
  scenario.config = MakeConfig(random);
  scenario.membership = MakeMembership(random, &scenario);
  constexpr int64_t kSlowestMs[] = {20, 150, 600};
  scenario.slowest_step = absl::Milliseconds(kSlowestMs[random->Below(3)]);
  scenario.faults = static_cast<uint32_t>(random->Between(1, 10));
  constexpr int64_t kBetweenMs[] = {30, 200, 800, 2500};
  scenario.between_faults = absl::Milliseconds(kBetweenMs[random->Below(4)]);
  scenario.only_coordinator_dies = random->Chance(8);
  scenario.checkpoint_every_steps = static_cast<uint32_t>(random->Between(0, 3));
  return scenario;
}

std::string Describe(const Scenario& scenario) {
  const MembershipOptions& membership = scenario.membership;
  const bool by_workers = membership.workers.given();
  const CountRange& range = by_workers ? membership.workers : membership.nodes;
  return absl::StrCat(
      scenario.config.num_train_samples(), " samples, ", scenario.config.epochs(), " epochs, ",
      scenario.nodes, " nodes of ", scenario.processes_per_node, " processes, --",
      by_workers ? "workers " : "nodes ", range.min, ":", range.max, ", steps of up to ",
      absl::FormatDuration(scenario.slowest_step), ", ", scenario.faults, " faults about ",
      absl::FormatDuration(scenario.between_faults), " apart",
      scenario.only_coordinator_dies ? ", of the coordinator only" : "",
      membership.max_failures >= 0 ? absl::StrCat(", --max-failures ", membership.max_failures)
                                   : "");
}

}  // namespace ringmaster
