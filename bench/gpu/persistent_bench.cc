// Times the persistent kernel and tells its accuracy.
//
//   persistent_bench MNIST-DIRECTORY [--parity SEEDS]
// Prints, for each variant interleaved: us a step (median and spread of launches of one epoch, by
// CUDA events), where the cycles of a step go, the wall time of six epochs with an evaluation after
// each, and test accuracy. --parity also trains the double reference for as many seeds, from the
// same initial weights in the same order, and compares the accuracies.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "kernels/cuda/persistent/persistent.h"
#include "tests/kernels/persistent_reference.h"

namespace ringmaster {
namespace {

using testing::PersistentReference;

constexpr uint32_t kEpochs = 6;

struct Candidate {
  const char* name;
  persistent::Variant variant;
  int hidden = 128;
  std::unique_ptr<PersistentTrainer> trainer;
  std::vector<double> us_per_step;
};

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::printf("FAILED: %s\n", status.ToString().c_str());
  std::exit(1);
}

void Check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("FAILED: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

PersistentOptions Options(const Dataset& mnist, int hidden, uint64_t seed) {
  PersistentOptions options;
  options.model.layers = {784, hidden, 10};
  options.plan = SamplingPlan{seed, mnist.train.num_samples, 128};
  return options;
}

std::unique_ptr<PersistentTrainer> Create(const PersistentOptions& options, const Dataset& mnist) {
  auto trainer = PersistentTrainer::Create(options, mnist);
  Check(trainer.status());
  Check((*trainer)->SetState(testing::RandomState(options.model, options.plan.seed, false)));
  return *std::move(trainer);
}

double TimeEpoch(PersistentTrainer* trainer, uint32_t epoch, uint32_t steps) {
  const auto stream = static_cast<cudaStream_t>(trainer->stream());
  cudaEvent_t start, stop;
  Check(cudaEventCreate(&start));
  Check(cudaEventCreate(&stop));
  Check(trainer->EnqueueSteps(epoch, 0, 1));  // so that the launch is queued when its turn comes
  Check(cudaEventRecord(start, stream));
  Check(trainer->EnqueueSteps(epoch, 0, steps));
  Check(cudaEventRecord(stop, stream));
  Check(trainer->Collect().status());
  float ms = 0;
  Check(cudaEventElapsedTime(&ms, start, stop));
  Check(cudaEventDestroy(start));
  Check(cudaEventDestroy(stop));
  return ms * 1000 / steps;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void TimeVariants(const Dataset& mnist) {
  Candidate candidates[] = {
      {"16 blocks, 2 terms", {}, 128, nullptr, {}},
      {"16 blocks, 2 terms (again)", {}, 128, nullptr, {}},
      {"16 blocks, 2 terms, normal fp16 pixels", {16, 2, true, true, false}, 128, nullptr, {}},
      {"16 blocks, 2 terms, no multicast", {16, 2, false, false, false}, 128, nullptr, {}},
      {"16 blocks, 1 term (fp16)", {16, 1, false, true, false}, 128, nullptr, {}},
      {"8 blocks, 64 hidden units", {8, 2, false, true, false}, 64, nullptr, {}},
  };
  for (Candidate& c : candidates) {
    PersistentOptions options = Options(mnist, c.hidden, 1);
    options.variant = c.variant;
    c.trainer = Create(options, mnist);
  }
  std::printf("live pixels: %d of 784\n", candidates[0].trainer->live_pixels());
  for (uint32_t round = 0; round < 23; ++round) {
    for (Candidate& c : candidates) {
      const double us = TimeEpoch(c.trainer.get(), round, 469);
      if (round >= 3) c.us_per_step.push_back(us);
    }
  }
  std::printf("%-42s %9s %9s %9s %12s\n", "us a step, launches of 469", "median", "least", "most",
              "ms an epoch");
  for (const Candidate& c : candidates) {
    const auto [least, most] = std::minmax_element(c.us_per_step.begin(), c.us_per_step.end());
    std::printf("%-42s %9.3f %9.3f %9.3f %12.3f\n", c.name, Median(c.us_per_step), *least, *most,
                Median(c.us_per_step) * 0.469);
  }
}

void ShowProfile(const Dataset& mnist, const char* name, persistent::Variant variant) {
  PersistentOptions options = Options(mnist, 128, 1);
  options.variant = variant;
  options.profile = true;
  const auto trainer = Create(options, mnist);
  for (uint32_t epoch = 0; epoch < 3; ++epoch) {
    Check(trainer->EnqueueSteps(epoch, 0, 469));
    Check(trainer->Collect().status());
  }
  const auto cycles = trainer->Profile();
  Check(cycles.status());
  static constexpr const char* kNames[] = {"wait images", "forward",  "reduce",
                                           "logits",      "softmax",  "wait gradient",
                                           "hidden",      "backward", "update"};
  int64_t total = 0;
  for (const int64_t c : *cycles) total += c;
  std::printf("cycles a step, %s (block 0, warp 0): total %lld\n", name,
              static_cast<long long>(total / 469));
  for (int i = 0; i < persistent::kStageCount; ++i) {
    std::printf("  %-14s %6lld\n", kNames[i], static_cast<long long>((*cycles)[i] / 469));
  }
}

// Test accuracy after each epoch, and the wall time of it all.
std::vector<double> TrainSixEpochs(PersistentTrainer* trainer, double* ms, double* loss) {
  const auto start = std::chrono::steady_clock::now();
  for (uint32_t epoch = 0; epoch < kEpochs; ++epoch) {
    Check(trainer->EnqueueSteps(epoch, 0, 469));
    Check(trainer->EnqueueEvaluation());
  }
  const auto results = trainer->Collect();
  *ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  Check(results.status());
  std::vector<double> accuracy;
  for (const StepRecord& record : results->evaluations) accuracy.push_back(record.accuracy());
  *loss = results->evaluations.back().mean_loss();
  uint64_t samples = 0, non_finite = 0;
  for (const StepRecord& record : results->steps) {
    samples += record.samples;
    non_finite += record.non_finite;
  }
  if (samples != uint64_t{60000} * kEpochs || non_finite != 0) {
    std::printf("FAILED: %llu samples, %llu losses not finite\n",
                static_cast<unsigned long long>(samples),
                static_cast<unsigned long long>(non_finite));
    std::exit(1);
  }
  return accuracy;
}

void TimeSixEpochs(const Dataset& mnist) {
  const PersistentOptions options = Options(mnist, 128, 1);
  const auto trainer = Create(options, mnist);
  std::vector<double> times;
  std::vector<double> accuracy;
  double loss = 0;
  for (int i = 0; i < 12; ++i) {
    Check(trainer->SetState(testing::RandomState(options.model, 1, false)));
    double ms = 0;
    accuracy = TrainSixEpochs(trainer.get(), &ms, &loss);
    if (i >= 2) times.push_back(ms);
  }
  const auto [least, most] = std::minmax_element(times.begin(), times.end());
  std::printf("six epochs with evaluation: %.2f ms (%.2f to %.2f), test loss %.4f, accuracy",
              Median(times), *least, *most, loss);
  for (const double a : accuracy) std::printf(" %.2f", 100 * a);
  std::printf(" %%\n");
}

void Parity(const Dataset& mnist, int seeds) {
  std::vector<double> device(seeds), reference(seeds);
  for (int seed = 0; seed < seeds; ++seed) {
    const auto trainer = Create(Options(mnist, 128, 100 + seed), mnist);
    double ms, loss;
    device[seed] = TrainSixEpochs(trainer.get(), &ms, &loss).back();
  }
  std::vector<std::thread> threads;
  for (int seed = 0; seed < seeds; ++seed) {
    threads.emplace_back([&, seed] {
      const PersistentOptions options = Options(mnist, 128, 100 + seed);
      PersistentReference trainer(options.model, options.optimizer, options.plan, mnist,
                                  testing::RandomState(options.model, 100 + seed, false));
      for (uint32_t epoch = 0; epoch < kEpochs; ++epoch) {
        for (uint32_t step = 0; step < 469; ++step) trainer.Step(epoch, step);
      }
      reference[seed] = double(trainer.Evaluate().correct) / mnist.test.num_samples;
    });
  }
  for (std::thread& thread : threads) thread.join();
  double device_mean = 0, reference_mean = 0, variance = 0;
  for (int i = 0; i < seeds; ++i) {
    device_mean += device[i] / seeds;
    reference_mean += reference[i] / seeds;
  }
  const double difference = device_mean - reference_mean;
  for (int i = 0; i < seeds; ++i) {
    variance += std::pow(device[i] - reference[i] - difference, 2) / std::max(1, seeds - 1);
  }
  std::printf(
      "parity over %d seeds: kernel %.3f %%, double reference %.3f %%, difference %+.3f points "
      "(standard error %.3f)\n",
      seeds, 100 * device_mean, 100 * reference_mean, 100 * difference,
      100 * std::sqrt(variance / seeds));
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::printf("usage: persistent_bench MNIST-DIRECTORY [--parity SEEDS]\n");
    return 2;
  }
  const Dataset mnist = testing::ReadMnist(argv[1]);
  if (mnist.train.num_samples == 0) {
    std::printf("no MNIST files in %s\n", argv[1]);
    return 2;
  }
  if (const std::string why = PersistentTrainer::WhyUnsupported(Options(mnist, 128, 1));
      !why.empty()) {
    std::printf("SKIPPED: %s\n", why.c_str());
    return 77;
  }
  TimeVariants(mnist);
  ShowProfile(mnist, "2 terms", {});
  TimeSixEpochs(mnist);
  if (argc == 4 && std::strcmp(argv[2], "--parity") == 0) Parity(mnist, std::atoi(argv[3]));
  return 0;
}

}  // namespace
}  // namespace ringmaster

int main(int argc, char** argv) { return ringmaster::Main(argc, argv); }
