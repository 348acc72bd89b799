// run_simulation: drives the coordinator's core through simulated runs, one a seed.
//
//   run_simulation [--first N] [--seeds N] [--mutation NAME]    many, silently
//   run_simulation --seed N [--verbose] [--mutation NAME]       one, with all that happens
//
// Environment: RINGMASTER_SIM_SEEDS, how many seeds instead of --seeds; with --shard I/N each shard
// takes its part of them. Exit code: 0 nothing was violated, 1 something was, 2 wrong arguments.

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "CLI/CLI.hpp"
#include "spdlog/spdlog.h"
#include "tests/simulation/simulation.h"

namespace ringmaster {
namespace {

constexpr size_t kTraceLines = 60;
constexpr size_t kAllLines = 1'000'000;

struct Arguments {
  uint64_t first = 0;
  uint64_t seeds = 1000;
  uint64_t shard = 0;
  uint64_t shards = 1;
  std::optional<uint64_t> seed;
  bool verbose = false;
  Mutation mutation = Mutation::kNone;
};

const std::map<std::string, Mutation> kMutations = {
    {"none", Mutation::kNone},
    {"lying-disk", Mutation::kLyingDisk},
    {"acks-before-commit", Mutation::kAcksBeforeCommit},
    {"no-fencing", Mutation::kNoFencing},
    {"no-deduplication", Mutation::kNoDeduplication},
    {"no-grace", Mutation::kNoGrace},
    {"records-from-ignored", Mutation::kRecordsFromIgnored},
};

volatile uint64_t current_seed = 0;

// A broken invariant ends the program: say at which seed.
void OnAbort(int) {
  char text[64];
  const int size = std::snprintf(text, sizeof text, "aborted in seed %llu\n",
                                 static_cast<unsigned long long>(current_seed));
  if (write(STDERR_FILENO, text, static_cast<size_t>(size)) < 0) _exit(1);
  _exit(1);
}

int Show(uint64_t seed, const Arguments& arguments, size_t lines) {
  const SimulationResult result = Simulate(seed, arguments.mutation, lines);
  std::fputs(Describe(seed, result).c_str(), stdout);
  return result.violation.empty() ? 0 : 1;
}

int RunMany(const Arguments& arguments) {
  uint64_t seeds = arguments.seeds;
  if (const char* wanted = std::getenv("RINGMASTER_SIM_SEEDS")) {
    seeds = std::strtoull(wanted, nullptr, 10);
  }
  const uint64_t begin = arguments.first + seeds * arguments.shard / arguments.shards;
  const uint64_t end = arguments.first + seeds * (arguments.shard + 1) / arguments.shards;
  const auto start = std::chrono::steady_clock::now();
  SimulationResult sum;
  for (uint64_t seed = begin; seed < end; ++seed) {
    current_seed = seed;
    const SimulationResult result = Simulate(seed, arguments.mutation, 0);
    if (!result.violation.empty()) return Show(seed, arguments, kTraceLines);
    sum.events += result.events;
    sum.faults += result.faults;
    sum.failures += result.failures;
    sum.generations += result.generations;
    sum.records_redone += result.records_redone;
    sum.coordinator_starts += result.coordinator_starts;
    sum.seconds += result.seconds;
  }
  const double took =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf(
      "%llu seeds, nothing violated: %llu events, %u faults, %llu generations of which %u broke, "
      "%llu records redone, %u coordinators, %.0f s simulated in %.1f s, %.0f seeds/s\n",
      static_cast<unsigned long long>(end - begin), static_cast<unsigned long long>(sum.events),
      sum.faults, static_cast<unsigned long long>(sum.generations), sum.failures,
      static_cast<unsigned long long>(sum.records_redone), sum.coordinator_starts, sum.seconds,
      took, static_cast<double>(end - begin) / took);
  return 0;
}

}  // namespace
}  // namespace ringmaster

int main(int argc, char** argv) {
  ringmaster::Arguments arguments;
  std::string shard;
  CLI::App app("Simulates runs in which everything fails that can, one a seed.");
  app.add_option("--first", arguments.first, "first seed");
  app.add_option("--seeds", arguments.seeds, "how many seeds");
  app.add_option("--shard", shard, "I/N: this part of them");
  app.add_option("--seed", arguments.seed, "this one only, with the end of its trace");
  app.add_flag("--verbose", arguments.verbose, "the whole trace");
  app.add_option("--mutation", arguments.mutation, "break this on purpose")
      ->transform(CLI::CheckedTransformer(ringmaster::kMutations));
  CLI11_PARSE(app, argc, argv);
  if (!shard.empty() &&
      (std::sscanf(shard.c_str(), "%lu/%lu", &arguments.shard, &arguments.shards) != 2 ||
       arguments.shard >= arguments.shards)) {
    std::fputs("--shard wants I/N with I below N\n", stderr);
    return 2;
  }
  spdlog::set_level(spdlog::level::off);
  signal(SIGABRT, ringmaster::OnAbort);
  if (arguments.seed) {
    return ringmaster::Show(*arguments.seed, arguments,
                            arguments.verbose ? ringmaster::kAllLines : ringmaster::kTraceLines);
  }
  return ringmaster::RunMany(arguments);
}
