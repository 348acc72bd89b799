// Simulation: one run of the real coordinator core with simulated workers, network, disk and time,
// in which everything that can go wrong does, at random.
//
// A pure function of the seed: no clock, no threads, no sockets. Once the faults are over the run
// must come to its end within a bounded time.
#pragma once

#include <cstdint>
#include <deque>
#include <string>

#include "tests/simulation/scenario.h"

namespace ringmaster {

struct SimulationResult {
  std::string violation;  // empty: all that must hold held
  std::string scenario;
  std::deque<std::string> trace;  // the last lines of it, as many as were asked for
  // What has happened.
  uint64_t events = 0;
  uint32_t faults = 0;
  uint32_t failures = 0;
  uint64_t generations = 0;
  uint64_t records_redone = 0;
  uint32_t coordinator_starts = 0;
  double seconds = 0;  // simulated
};

// `trace_lines`: how many lines of the trace to keep; 0 is fastest.
SimulationResult Simulate(uint64_t seed, Mutation mutation, size_t trace_lines);

// For people: what `seed` violated and what led there.
std::string Describe(uint64_t seed, const SimulationResult& result);

}  // namespace ringmaster
