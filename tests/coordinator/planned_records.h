// The records that a faithful run sends: what the ranks of a run without faults would gather.
#pragma once

#include <cstdint>
#include <vector>

#include "common/sampling_plan.h"
#include "proto/training.pb.h"

namespace ringmaster {

inline uint64_t FingerprintSum(const std::vector<uint32_t>& samples) {
  uint64_t sum = 0;
  for (const uint32_t sample : samples) sum += SampleFingerprint(sample);
  return sum;
}

inline GlobalRecord PlannedRecord(const std::vector<uint32_t>& samples, uint32_t world_size) {
  GlobalRecord record;
  record.set_samples(samples.size());
  record.set_sample_digest(FingerprintSum(samples));
  record.set_correct(samples.size() / 2);
  record.set_loss_sum_quanta(uint64_t{samples.size()} << 31);  // half a unit each
  for (uint32_t rank = 0; rank < world_size; ++rank) {
    record.add_compute_us(100);
    record.add_all_reduce_us(10);
  }
  return record;
}

inline std::vector<GlobalRecord> PlannedRecords(const TrainingConfig& config, uint32_t world_size) {
  const SamplingPlan plan{config.seed(), config.num_train_samples(), config.global_batch()};
  std::vector<uint32_t> test_samples;
  for (uint32_t i = 0; i < config.num_test_samples(); ++i) test_samples.push_back(i);
  std::vector<GlobalRecord> records;
  for (uint32_t epoch = 0; epoch < config.epochs(); ++epoch) {
    const Permutation order = plan.Order(epoch);
    for (uint32_t step = 0; step < plan.steps_per_epoch(); ++step) {
      std::vector<uint32_t> samples;
      const PositionRange batch = plan.Batch(step);
      for (uint32_t at = batch.first; at < batch.end(); ++at) samples.push_back(order(at));
      records.push_back(PlannedRecord(samples, world_size));
      records.back().set_epoch(epoch);
      records.back().set_step(step);
      if (step + 1 == plan.steps_per_epoch()) records.back().set_epoch_seconds(0.5);
    }
    records.push_back(PlannedRecord(test_samples, world_size));
    records.back().set_epoch(epoch);
    records.back().set_evaluation(true);
  }
  return records;
}

}  // namespace ringmaster
