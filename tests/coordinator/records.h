// Records and a configuration to test with.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "proto/training.pb.h"

namespace ringmaster {

// 3 training samples in batches of 2: two steps an epoch, the last of one sample.
inline TrainingConfig SmallConfig() {
  TrainingConfig config;
  for (const uint32_t width : {2, 2}) config.add_layers(width);
  config.set_optimizer(ADAM);
  config.set_learning_rate(0.001f);
  config.set_beta1(0.9f);
  config.set_beta2(0.999f);
  config.set_epsilon(1e-7f);
  config.set_seed(7);
  config.set_global_batch(2);
  config.set_epochs(2);
  config.set_num_train_samples(3);
  config.set_num_test_samples(4);
  config.set_data_digest("abc");
  return config;
}

struct RecordValues {
  double loss_sum = 0;
  uint64_t correct = 0;
  uint64_t samples = 0;
  double epoch_seconds = 0;
  std::vector<float> compute_us = {};
  std::vector<float> all_reduce_us = {};
};

inline GlobalRecord MakeRecord(const RecordValues& values) {
  GlobalRecord record;
  record.set_loss_sum_quanta(static_cast<uint64_t>(std::llround(values.loss_sum * 0x1p32)));
  record.set_correct(values.correct);
  record.set_samples(values.samples);
  record.set_epoch_seconds(values.epoch_seconds);
  for (const float us : values.compute_us) record.add_compute_us(us);
  for (const float us : values.all_reduce_us) record.add_all_reduce_us(us);
  return record;
}

inline GlobalRecord TrainingStep(uint32_t epoch, uint32_t step, const RecordValues& values) {
  GlobalRecord record = MakeRecord(values);
  record.set_epoch(epoch);
  record.set_step(step);
  return record;
}

inline GlobalRecord Evaluation(uint32_t epoch, const RecordValues& values) {
  GlobalRecord record = MakeRecord(values);
  record.set_epoch(epoch);
  record.set_evaluation(true);
  return record;
}

}  // namespace ringmaster
