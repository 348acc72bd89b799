// make_logs RUN_DIR [LIVES]: the logs and the report of a made-up run, for the check with the real
// TensorBoard. As large as the default run on two ranks: 6 epochs of 469 steps. With LIVES, the
// coordinator dies so often on the way: each death tears the ends of the logs, one byte more than
// the one before, and each new life plays the records of the epoch back.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/sampling_plan.h"
#include "common/status_macros.h"
#include "common/step_tail.h"
#include "coordinator/report.h"
#include "coordinator/run_logger.h"

namespace ringmaster {
namespace {

constexpr uint32_t kWorldSize = 2;

TrainingConfig DefaultConfig(const ModelSpec& model) {
  TrainingConfig config;
  for (const int width : model.layers) config.add_layers(static_cast<uint32_t>(width));
  config.set_optimizer(ADAM);
  config.set_learning_rate(1e-3f);
  config.set_beta1(0.9f);
  config.set_beta2(0.999f);
  config.set_epsilon(1e-7f);
  config.set_seed(1);
  config.set_global_batch(128);
  config.set_epochs(6);
  config.set_num_train_samples(60000);
  config.set_num_test_samples(10000);
  return config;
}

// A loss and an accuracy that improve with the steps.
GlobalRecord MakeRecord(uint32_t epoch, uint32_t step, uint32_t samples, double progress) {
  GlobalRecord record;
  record.set_epoch(epoch);
  record.set_step(step);
  record.set_samples(samples);
  const double loss = 0.05 + 2.2 * std::exp(-progress);
  record.set_loss_sum_quanta(
      static_cast<uint64_t>(std::llround(loss * samples / tail::kLossQuantum)));
  record.set_correct(static_cast<uint64_t>(samples * (1 - 0.9 * std::exp(-progress))));
  for (uint32_t rank = 0; rank < kWorldSize; ++rank) {
    const bool timed = epoch > 0 || step > 0;
    record.add_compute_us(timed ? 250.0f + static_cast<float>((step + rank) % 7) : 0);
    record.add_all_reduce_us(timed ? 60.0f + static_cast<float>(step % 5) : 0);
  }
  return record;
}

// Cuts `bytes` off the newest event file of a run; all of it, if it has no more.
void Tear(const std::string& directory, uintmax_t bytes) {
  std::set<std::string> files;
  for (const auto& file : std::filesystem::directory_iterator(directory)) {
    files.insert(file.path());
  }
  const uintmax_t size = std::filesystem::file_size(*files.rbegin());
  std::filesystem::resize_file(*files.rbegin(), size - std::min(size, bytes));
}

// The logs of a run whose coordinator dies now and then.
class Logs {
 public:
  Logs(const std::string& run_dir, const TrainingConfig& config, uint32_t lives, uint64_t records)
      : run_dir_(run_dir), config_(config), every_(lives > 0 ? records / (lives + 1) : 0) {}

  absl::Status Start(absl::Time now) {
    RM_ASSIGN_OR_RETURN(logger_, RunLogger::Create(run_dir_, config_, now));
    return absl::OkStatus();
  }

  absl::Status Record(const GlobalRecord& record, absl::Time now) {
    if (!record.evaluation() && record.step() == 0) {
      // As before a journal's new snapshot: the records of the epoch before are not played back.
      RM_RETURN_IF_ERROR(logger_->Sync());
      epoch_.clear();
    }
    epoch_.push_back(record);
    RM_RETURN_IF_ERROR(logger_->Record(record, now));
    return every_ > 0 && ++records_ % every_ == 0 ? Die(now) : absl::OkStatus();
  }

  RunLogger& logger() { return *logger_; }

 private:
  absl::Status Die(absl::Time now) {
    logger_.reset();
    ++deaths_;
    // At the start of an epoch there is nothing that could be played back for what is torn.
    if (epoch_.size() > kMostRecordsTorn) {
      Tear(run_dir_ + "/tensorboard/train", deaths_);
      Tear(run_dir_ + "/tensorboard/validation", epoch_.back().evaluation() ? deaths_ : 0);
    }
    std::string note;
    RM_ASSIGN_OR_RETURN(logger_, RunLogger::Resume(run_dir_, config_, now, &note));
    for (const GlobalRecord& record : epoch_) RM_RETURN_IF_ERROR(logger_->Record(record, now));
    return absl::OkStatus();
  }

  static constexpr size_t kMostRecordsTorn = 20;

  const std::string run_dir_;
  const TrainingConfig config_;
  const uint64_t every_;
  uint64_t records_ = 0;
  uint64_t deaths_ = 0;
  std::unique_ptr<RunLogger> logger_;
  std::vector<GlobalRecord> epoch_;  // in the journal
};

absl::Status WriteRun(const std::string& run_dir, uint32_t lives) {
  const ModelSpec model;
  const TrainingConfig config = DefaultConfig(model);
  const SamplingPlan plan = {config.seed(), config.num_train_samples(), config.global_batch()};
  const uint32_t steps = plan.steps_per_epoch();
  absl::Time now = absl::FromUnixSeconds(1700000000);
  RunReport report;
  report.outcome = RunOutcome::kSuccess;
  report.run_dir = run_dir;
  report.config = config;
  report.world_size = kWorldSize;
  report.generations = 1;
  report.device = CPU;

  Logs logs(run_dir, config, lives, uint64_t{config.epochs()} * (steps + 1));
  RM_RETURN_IF_ERROR(logs.Start(now));
  const auto log = [&](const GlobalRecord& record) {
    now += absl::Microseconds(350);
    report.history.Add(record);
    return logs.Record(record, now);
  };
  for (uint32_t epoch = 0; epoch < config.epochs(); ++epoch) {
    for (uint32_t step = 0; step < steps; ++step) {
      const double progress = 1 + 3.0 * (epoch * steps + step) / (config.epochs() * steps);
      GlobalRecord record = MakeRecord(epoch, step, plan.Batch(step).count, progress);
      if (step + 1 == steps) record.set_epoch_seconds(0.17);
      RM_RETURN_IF_ERROR(log(record));
    }
    GlobalRecord evaluation = MakeRecord(epoch, 0, config.num_test_samples(), 2 + 0.3 * epoch);
    evaluation.set_evaluation(true);
    RM_RETURN_IF_ERROR(log(evaluation));
    RM_RETURN_IF_ERROR(logs.logger().Weights(epoch, model, InitialState(model, epoch), now));
  }
  report.samples_committed = report.samples_expected = report.history.samples();
  RM_RETURN_IF_ERROR(logs.logger().Close());
  std::ofstream(run_dir + "/report.json") << ToJson(report);
  return absl::OkStatus();
}

}  // namespace
}  // namespace ringmaster

int main(int argc, char** argv) {
  if (argc != 2 && argc != 3) {
    std::fprintf(stderr, "usage: make_logs RUN_DIR [LIVES]\n");
    return 2;
  }
  std::error_code ignored;
  std::filesystem::remove_all(std::string(argv[1]) + "/tensorboard", ignored);  // of the last test
  const auto lives = argc == 3 ? static_cast<uint32_t>(std::strtoul(argv[2], nullptr, 10)) : 0;
  const absl::Status status = ringmaster::WriteRun(argv[1], lives);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
