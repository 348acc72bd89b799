// Checks the persistent kernel on a GPU against the double reference: records, weights and moments
// after 1, 2, 3 and more steps, ragged batches, both optimizers, resuming in the middle of an
// epoch, determinism, stopping. A plain program, so that it can be carried to a machine with only a
// driver.
//
//   persistent_check [MNIST directory]
// Exit code 0: all checks passed; 1: one failed; 77: no GPU that the kernel supports.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>

#include "kernels/cuda/persistent/persistent.h"
#include "tests/kernels/persistent_reference.h"

namespace ringmaster::testing {
namespace {

constexpr int kSkipped = 77;
int failures = 0;

void Expect(bool ok, const char* what) {
  if (!ok) ++failures;
  std::printf("    %-4s %s\n", ok ? "ok" : "FAIL", what);
}

struct Case {
  const char* name;
  PersistentOptions options;
  uint32_t steps = 1;       // from the start of epoch 3
  uint32_t launch = 1000;   // steps in each launch
  double tolerance = 2e-6;  // of the weights, relative to what the reference changed them by
};

double ChangeError(const std::vector<float>& got, const std::vector<double>& want,
                   const std::vector<float>& before) {
  double difference = 0, change = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    change += (want[i] - before[i]) * (want[i] - before[i]);
  }
  return std::sqrt(difference / change);
}

void CheckRecord(const StepRecord& got, const ReferenceRecord& want, double loss_tolerance,
                 bool exact_correct, double* loss_error, bool* counts) {
  *loss_error = std::max(*loss_error, std::abs(got.loss_sum() / want.loss_sum - 1));
  const bool correct = exact_correct ? got.correct == want.correct
                                     : std::abs(double(got.correct) - double(want.correct)) <= 2;
  *counts = *counts && correct && got.samples == want.samples && got.digest == want.digest &&
            got.non_finite == 0;
  if (!correct || got.samples != want.samples || got.digest != want.digest) {
    std::printf(
        "    got %llu correct of %llu digest %llx, want %llu of %llu digest %llx\n",
        static_cast<unsigned long long>(got.correct), static_cast<unsigned long long>(got.samples),
        static_cast<unsigned long long>(got.digest), static_cast<unsigned long long>(want.correct),
        static_cast<unsigned long long>(want.samples),
        static_cast<unsigned long long>(want.digest));
  }
  (void)loss_tolerance;
}

void Check(const Case& test, const Dataset& dataset) {
  std::printf("%s\n", test.name);
  const TrainState start = RandomState(test.options.model, 5, true);
  auto trainer = PersistentTrainer::Create(test.options, dataset);
  if (!trainer.ok()) {
    std::printf("    %s\n", std::string(trainer.status().message()).c_str());
    return Expect(false, "created");
  }
  PersistentReference reference(test.options.model, test.options.optimizer, test.options.plan,
                                dataset, start);
  absl::Status status = (*trainer)->SetState(start);
  const uint32_t per_epoch = test.options.plan.steps_per_epoch();
  for (uint32_t done = 0; status.ok() && done < test.steps;) {
    const uint32_t first = done % per_epoch;
    const uint32_t count = std::min({test.launch, test.steps - done, per_epoch - first});
    status = (*trainer)->EnqueueSteps(3 + done / per_epoch, first, count);
    done += count;
  }
  absl::StatusOr<PersistentResults> results = (*trainer)->Collect();
  absl::StatusOr<TrainState> state = (*trainer)->GetState();
  if (!status.ok() || !results.ok() || !state.ok()) {
    std::printf("    %s %s %s\n", status.ToString().c_str(), results.status().ToString().c_str(),
                state.status().ToString().c_str());
    return Expect(false, "ran");
  }
  Expect(results->steps.size() == test.steps && !results->stopped, "did every step");
  Expect(state->step == test.steps, "counted the updates");
  double loss_error = 0;
  bool counts = true;
  for (uint32_t i = 0; i < test.steps && i < results->steps.size(); ++i) {
    const ReferenceRecord want = reference.Step(3 + i / per_epoch, i % per_epoch);
    CheckRecord(results->steps[i], want, 0, i < 3 && want.smallest_margin > 1e-5, &loss_error,
                &counts);
  }
  Expect(counts, "records: samples, digest, correct");
  const double weights = ChangeError(state->parameters, reference.parameters(), start.parameters);
  const double first = RelativeError(state->first_moment, reference.first_moment());
  const double second = RelativeError(state->second_moment, reference.second_moment());
  std::printf("    loss %.2e  weights %.2e of their change  moments %.2e %.2e\n", loss_error,
              weights, first, second);
  Expect(loss_error < test.tolerance, "losses");
  Expect(weights < test.tolerance * 10, "weights");
  Expect(first < test.tolerance * 10 && second < test.tolerance * 10, "moments");
}

PersistentOptions Options(const Dataset& dataset, uint32_t batch) {
  PersistentOptions options;
  options.model.layers = {dataset.pixels(), 128, dataset.num_classes};
  options.plan = SamplingPlan{77, dataset.train.num_samples, batch};
  return options;
}

void CheckStop(const PersistentOptions& options, const Dataset& dataset) {
  std::printf("stop\n");
  auto trainer = PersistentTrainer::Create(options, dataset);
  if (!trainer.ok()) return Expect(false, "created");
  const TrainState start = RandomState(options.model, 5, true);
  bool ok = (*trainer)->SetState(start).ok();
  (*trainer)->RequestStop();
  ok = ok && (*trainer)->EnqueueSteps(0, 0, options.plan.steps_per_epoch()).ok();
  const auto results = (*trainer)->Collect();
  const auto state = (*trainer)->GetState();
  Expect(ok && results.ok() && state.ok(), "ran");
  if (!results.ok() || !state.ok()) return;
  Expect(results->stopped && results->steps.empty(), "a launch after a stop does no step");
  Expect(*state == start, "and leaves the state alone");
  Expect((*trainer)->EnqueueSteps(0, 0, 2).ok() && (*trainer)->Collect()->steps.size() == 2,
         "training goes on after Collect()");
}

void CheckDeterminism(const PersistentOptions& options, const Dataset& dataset) {
  std::printf("determinism: one launch of 60 steps three times, and launches of 7\n");
  const TrainState start = RandomState(options.model, 6, true);
  TrainState first;
  for (const uint32_t launch : {60u, 60u, 60u, 7u}) {
    auto trainer = PersistentTrainer::Create(options, dataset);
    if (!trainer.ok() || !(*trainer)->SetState(start).ok()) return Expect(false, "created");
    for (uint32_t done = 0; done < 60; done += launch) {
      (void)(*trainer)->EnqueueSteps(0, done, std::min(launch, 60 - done));
    }
    if (!(*trainer)->Collect().ok()) return Expect(false, "ran");
    const auto state = (*trainer)->GetState();
    if (first.parameters.empty()) first = *state;
    Expect(*state == first, "same bits");
  }
}

int Main(int argc, char** argv) {
  const Dataset random = RandomDataset(60 * 128 + 37, 784, 719, 10, 1);
  const PersistentOptions base = Options(random, 128);
  if (const std::string reason = PersistentTrainer::WhyUnsupported(base); !reason.empty()) {
    std::printf("SKIPPED: %s\n", reason.c_str());
    return kSkipped;
  }
  Case test{"random images, 1 step", base};
  Check(test, random);
  if (failures > 0) return 1;
  test.name = "2 steps", test.steps = 2;
  Check(test, random);
  test.name = "3 steps", test.steps = 3;
  Check(test, random);
  test.name = "an epoch and a half, ragged batch of 37, launches of 13", test.steps = 91;
  test.launch = 13, test.tolerance = 1e-4;
  Check(test, random);
  Case sgd{"SGD, 3 steps", base, 3};
  sgd.options.optimizer.kind = OptimizerSpec::Kind::kSgd;
  sgd.options.optimizer.learning_rate = 0.1f;
  Check(sgd, random);
  Case normal{"pixels as normal fp16, 3 steps", base, 3};
  normal.options.variant.normal = true;
  Check(normal, random);
  Case unicast{"no multicast, 3 steps", base, 3};
  unicast.options.variant.multicast = false;
  Check(unicast, random);
  Case narrow{"64 hidden units (cluster of 8), 3 steps", base, 3};
  narrow.options.model.layers[1] = 64;
  Check(narrow, random);
  const Dataset small = RandomDataset(100, 50, 30, 7, 2);
  Check({"100 samples, 50 pixels, 7 classes, batch 48, 5 steps", Options(small, 48), 5}, small);
  CheckStop(base, random);
  CheckDeterminism(base, random);
  if (argc > 1) {
    const Dataset mnist = ReadMnist(argv[1]);
    if (mnist.train.num_samples == 0) {
      Expect(false, "MNIST read");
    } else {
      Check({"MNIST, 3 steps", Options(mnist, 128), 3}, mnist);
      Check({"MNIST, an epoch of 469 steps", Options(mnist, 128), 469, 1000, 1e-3}, mnist);
    }
  }
  std::printf(failures == 0 ? "ALL OK\n" : "%d FAILED\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace ringmaster::testing

int main(int argc, char** argv) { return ringmaster::testing::Main(argc, argv); }
