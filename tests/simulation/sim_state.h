// What simulated workers train: a state that is the chain of the steps that led to it.
//
// Each step mixes in who computed it (the generation), as training that is not reproducible does:
// the same step done again gives another state, so a state tells its whole lineage. Thread safety:
// pure functions.
#pragma once

#include <bit>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/model.h"
#include "common/sampling_plan.h"
#include "common/timeline.h"
#include "coordinator/ledger.h"
#include "coordinator/state_store.h"
#include "proto/training.pb.h"

namespace ringmaster {

constexpr uint64_t kInitialChain = 1;

// The state after the step at `position`.
inline uint64_t NextChain(uint64_t chain, uint64_t position, uint64_t generation) {
  uint64_t z = chain + 0x9E3779B97F4A7C15ull * (position + 1) + 0xD1342543DE82EF95ull * generation;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

inline std::string ChainDigest(uint64_t chain) { return absl::StrCat(absl::Hex(chain)); }

inline std::vector<float> ChainParameters(uint64_t chain) {
  return {std::bit_cast<float>(static_cast<uint32_t>(chain)),
          std::bit_cast<float>(static_cast<uint32_t>(chain >> 32))};
}

inline uint64_t ChainOf(const TrainState& state) {
  return std::bit_cast<uint32_t>(state.parameters[0]) |
         uint64_t{std::bit_cast<uint32_t>(state.parameters[1])} << 32;
}

inline StoredStatePtr StoreChain(const Timeline& timeline, uint64_t generation, uint64_t position,
                                 uint64_t chain) {
  StoredState stored;
  stored.generation = generation;
  stored.position = ToProto(timeline, position);
  stored.state.parameters = ChainParameters(chain);
  stored.digest = ChainDigest(chain);
  return std::make_shared<const StoredState>(std::move(stored));
}

// The record of the step at `position` that led to `chain`: what was gathered is what the plan
// says, and the loss tells the state.
inline GlobalRecord ChainRecord(const TrainingConfig& config, uint64_t position, uint64_t chain) {
  const SamplingPlan plan{config.seed(), config.num_train_samples(), config.global_batch()};
  const TimelineEntry place = Timeline(plan, config.epochs()).At(position);
  GlobalRecord record;
  record.set_epoch(place.epoch);
  record.set_step(place.step);
  record.set_evaluation(place.evaluation);
  record.set_loss_sum_quanta(chain);
  uint64_t digest = 0;
  if (place.evaluation) {
    record.set_samples(config.num_test_samples());
    for (uint32_t at = 0; at < config.num_test_samples(); ++at) digest += SampleFingerprint(at);
  } else {
    const PositionRange batch = plan.Batch(place.step);
    const Permutation order = plan.Order(place.epoch);
    record.set_samples(batch.count);
    for (uint32_t at = batch.first; at < batch.end(); ++at) digest += SampleFingerprint(order(at));
  }
  record.set_sample_digest(digest);
  return record;
}

}  // namespace ringmaster
