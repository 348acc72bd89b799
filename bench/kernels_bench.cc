// The CPU backend's parts and whole steps, on real MNIST and one core. Run from the source tree:
//   build/release/bin/kernels_bench
// Every product reports GFLOP/s and its ratio to the FMA peak that this run has measured first;
// the sparse products count the work of the dense ones, so they can pass the peak.

#include <benchmark/benchmark.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/dataset.h"
#include "kernels/cpu/aligned_buffer.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/input_layer.h"
#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/matrix.h"

namespace ringmaster {
namespace {

constexpr int kAccumulators = 10;  // enough to hide the latency of a multiply-add
constexpr int kPeakLoops = 200000;

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) void MultiplyAddAvx512() {
  __m512 x[kAccumulators] = {};
  const __m512 a = _mm512_set1_ps(0.5f);
  for (int i = 0; i < kPeakLoops; ++i) {
#pragma GCC unroll 10
    for (int j = 0; j < kAccumulators; ++j) {
      x[j] = _mm512_fmadd_ps(x[j], a, a);
      asm volatile("" : "+v"(x[j]));
    }
  }
}

__attribute__((target("avx2,fma"))) void MultiplyAddAvx2() {
  __m256 x[kAccumulators] = {};
  const __m256 a = _mm256_set1_ps(0.5f);
  for (int i = 0; i < kPeakLoops; ++i) {
#pragma GCC unroll 10
    for (int j = 0; j < kAccumulators; ++j) {
      x[j] = _mm256_fmadd_ps(x[j], a, a);
      asm volatile("" : "+x"(x[j]));
    }
  }
}
#endif

// GFLOP/s of the best of several runs; 0 where there is no fused multiply-add to measure.
double MeasurePeak() {
  double best = 0;
#if defined(__x86_64__)
  const auto measure = [&best](void (*loop)(), int lanes) {
    for (int i = 0; i < 20; ++i) {
      const auto start = std::chrono::steady_clock::now();
      loop();
      best = std::max(best, 2e-9 * lanes * kAccumulators * kPeakLoops / SecondsSince(start));
    }
  };
  if (__builtin_cpu_supports("avx512f")) measure(MultiplyAddAvx512, 16);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) measure(MultiplyAddAvx2, 8);
#endif
  return best;
}

double Peak() {
  static const double peak = MeasurePeak();
  return peak;
}

// `flop` a turn.
void ReportFlops(benchmark::State& state, double flop) {
  state.counters["GFLOP/s"] =
      benchmark::Counter(flop * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  if (Peak() > 0) {
    state.counters["of_peak"] =
        benchmark::Counter(flop * 1e-9 / Peak(), benchmark::Counter::kIsIterationInvariantRate);
  }
}

AlignedBuffer<float> Floats(size_t count) {
  AlignedBuffer<float> buffer(count);
  for (size_t i = 0; i < count; ++i) buffer[i] = 0.01f * static_cast<float>(i % 13) - 0.06f;
  return buffer;
}

// The products of the default model; the argument is the batch.
enum class Product { kForward1, kGradient1, kForward2, kGradient2, kBack2 };

absl::Status RunProduct(Product product, int batch, ConstMatrix images, ConstMatrix hidden,
                        ConstMatrix logits, ConstMatrix weights, Matrix out) {
  switch (product) {
    case Product::kForward1:
      return Multiply(batch, 128, 784, images, weights, out);
    case Product::kGradient1:
      return MultiplyTransposedA(784, 128, batch, images, hidden, false, out);
    case Product::kForward2:
      return Multiply(batch, 10, 128, hidden, {weights.data, 10}, out);
    case Product::kGradient2:
      return MultiplyTransposedA(128, 10, batch, hidden, logits, false, {out.data, 10});
    case Product::kBack2:
      return MultiplyTransposedB(batch, 128, 10, logits, {weights.data, 10}, out);
  }
  return absl::OkStatus();
}

void BM_Gemm(benchmark::State& state, Product product) {
  const int batch = static_cast<int>(state.range(0));
  const AlignedBuffer<float> images = Floats(size_t{784} * batch);
  const AlignedBuffer<float> hidden = Floats(size_t{128} * batch);
  const AlignedBuffer<float> logits = Floats(size_t{16} * batch);
  const AlignedBuffer<float> weights = Floats(784 * 128);
  AlignedBuffer<float> out = Floats(size_t{128} * std::max(784, batch));
  SetMatrixThreads(1);
  for (auto _ : state) {
    const absl::Status status =
        RunProduct(product, batch, {images.data(), 784}, {hidden.data(), 128}, {logits.data(), 16},
                   {weights.data(), 128}, {out.data(), 128});
    if (!status.ok()) state.SkipWithError(status.ToString().c_str());
  }
  const bool is_first_layer = product == Product::kForward1 || product == Product::kGradient1;
  ReportFlops(state, 2.0 * batch * (is_first_layer ? 784 * 128 : 128 * 10));
}

// The first layer on the first `batch` training images, in chunks of 128 as the backend does it.
void BM_InputLayer(benchmark::State& state, const Dataset* dataset, const VectorKernels* kernels,
                   bool is_sparse, bool is_forward) {
  constexpr int kRows = 128;
  const InputShape shape{784, 128, kRows};
  const auto layer =
      is_sparse ? CreateSparseInput(shape, 1, *kernels) : CreateDenseInput(shape, *kernels);
  for (int row = 0; row < kRows; ++row) layer->Load(row, &dataset->train.images[784 * row]);
  layer->Finish(kRows);
  AlignedBuffer<float> weights = Floats(784 * 128);
  AlignedBuffer<float> hidden = Floats(kRows * 128);
  SetMatrixThreads(1);
  for (auto _ : state) {
    const absl::Status status = is_forward
                                    ? layer->Forward(weights.data(), {hidden.data(), 128})
                                    : layer->Gradient({hidden.data(), 128}, false, weights.data());
    if (!status.ok()) state.SkipWithError(status.ToString().c_str());
  }
  ReportFlops(state, 2.0 * kRows * 784 * 128);
}

void BM_LoadChunk(benchmark::State& state, const Dataset* dataset, const VectorKernels* kernels,
                  bool is_sparse) {
  const InputShape shape{784, 128, 128};
  const auto layer =
      is_sparse ? CreateSparseInput(shape, 1, *kernels) : CreateDenseInput(shape, *kernels);
  const Permutation order = SamplingPlan{1, dataset->train.num_samples, 128}.Order(0);
  uint32_t position = 0;
  for (auto _ : state) {
    for (int row = 0; row < 128; ++row, position = (position + 1) % order.size()) {
      layer->Load(row, &dataset->train.images[784 * order(position)]);
    }
    layer->Finish(128);
  }
  state.SetBytesProcessed(state.iterations() * 128 * 784);
}

void BM_Softmax(benchmark::State& state, const VectorKernels* kernels) {
  AlignedBuffer<float> logits = Floats(128 * 16);
  const AlignedBuffer<float> bias = Floats(10);
  std::vector<uint8_t> labels(128, 3);
  std::vector<float> losses(128);
  std::vector<int32_t> predictions(128);
  const SoftmaxBatch batch{
      logits.data(), bias.data(), labels.data(), losses.data(), predictions.data(), 128, 10, 16};
  for (auto _ : state) kernels->softmax_cross_entropy(batch);
  state.SetItemsProcessed(state.iterations() * 128);
}

void BM_Adam(benchmark::State& state, const VectorKernels* kernels) {
  constexpr size_t kCount = 101770;
  const AlignedBuffer<float> gradient = Floats(kCount);
  AlignedBuffer<float> w = Floats(kCount);
  AlignedBuffer<float> m = Floats(kCount);
  AlignedBuffer<float> v(kCount);
  const AdamUpdate update{kCount, gradient.data(), w.data(), m.data(), v.data(), 1.0f / 128,
                          0.1f,   0.001f,          1e-3f,    1e-7f};
  for (auto _ : state) kernels->adam(update);
  state.SetBytesProcessed(state.iterations() * kCount * sizeof(float) * 7);
}

// The processor's seconds for a step, by instruction set and batch: what a reproducible one is
// compared with.
std::map<std::string, double>& StepSeconds() {
  static auto* const seconds = new std::map<std::string, double>;
  return *seconds;
}

// Gather to update, over consecutive steps of an epoch. `epoch_s` is what 60,000 samples take, and
// `to_normal` a reproducible step's time in steps of step_sparse, if that has been run before.
void BM_Step(benchmark::State& state, const Dataset* dataset, const CpuTuning& tuning,
             const std::string& normal) {
  BackendOptions options;
  options.reproducible = tuning.exact_kernels != nullptr;
  options.plan = {1, dataset->train.num_samples, static_cast<uint32_t>(state.range(0)),
                  SliceGranularity(options.reproducible)};
  auto backend = CreateTunedCpuBackend(options, *dataset, tuning);
  if (!backend.ok()) return state.SkipWithError(backend.status().ToString().c_str());
  uint32_t step = 0;
  const std::clock_t start = std::clock();
  for (auto _ : state) {
    StepWork work;
    work.slice = options.plan.Batch(step);
    step = (step + 1) % (options.plan.num_samples / options.plan.global_batch);
    if (!(*backend)->ComputeGradient(work).ok() || !(*backend)->ApplyUpdate().ok() ||
        !(*backend)->Collect(true, absl::ZeroDuration()).ok()) {
      state.SkipWithError("the step failed");
    }
  }
  // Of the processor, which others may want too.
  const double step_s = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC /
                        static_cast<double>(state.iterations());
  const std::string key = absl::StrCat(normal, state.range(0));
  if (tuning.input == CpuTuning::Input::kSparse) StepSeconds()[key] = step_s;
  if (options.reproducible && StepSeconds().count(key) > 0) {
    state.counters["to_normal"] = step_s / StepSeconds()[key];
  }
  const double batch = options.plan.global_batch;
  ReportFlops(state, batch * (203264 + 205824));
  state.counters["epoch_s"] = benchmark::Counter(
      batch / 60000, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

void RegisterGemms() {
  const std::pair<const char*, Product> products[] = {{"X_W1", Product::kForward1},
                                                      {"Xt_dH", Product::kGradient1},
                                                      {"H_W2", Product::kForward2},
                                                      {"Ht_dZ", Product::kGradient2},
                                                      {"dZ_W2t", Product::kBack2}};
  for (const auto& [name, product] : products) {
    benchmark::RegisterBenchmark((std::string("gemm/") + name).c_str(), BM_Gemm, product)
        ->Arg(64)
        ->Arg(128)
        ->Arg(1024);
  }
}

void RegisterStep(const std::string& prefix, const char* name, const Dataset* dataset,
                  const CpuTuning& tuning) {
  benchmark::RegisterBenchmark((prefix + name).c_str(), BM_Step, dataset, tuning, prefix)
      ->Arg(64)
      ->Arg(128)
      ->Arg(1024);
}

void RegisterKernels(const Dataset* dataset, const VectorKernels* kernels) {
  const std::string prefix = std::string(kernels->name) + "/";
  for (const bool is_sparse : {true, false}) {
    const std::string kind = prefix + (is_sparse ? "sparse_" : "dense_");
    benchmark::RegisterBenchmark((kind + "load").c_str(), BM_LoadChunk, dataset, kernels,
                                 is_sparse);
    benchmark::RegisterBenchmark((kind + "forward").c_str(), BM_InputLayer, dataset, kernels,
                                 is_sparse, true);
    benchmark::RegisterBenchmark((kind + "gradient").c_str(), BM_InputLayer, dataset, kernels,
                                 is_sparse, false);
  }
  benchmark::RegisterBenchmark((prefix + "softmax").c_str(), BM_Softmax, kernels);
  benchmark::RegisterBenchmark((prefix + "adam").c_str(), BM_Adam, kernels);
  for (const auto& [name, input] : {std::pair{"step_sparse", CpuTuning::Input::kSparse},
                                    std::pair{"step_dense", CpuTuning::Input::kDense}}) {
    RegisterStep(prefix, name, dataset, {kernels, input, nullptr});
  }
}

void RegisterExact(const Dataset* dataset, const ExactKernels* kernels) {
  RegisterStep(std::string(kernels->name) + "/", "step_reproducible", dataset,
               {nullptr, CpuTuning::Input::kAuto, kernels});
}

absl::StatusOr<Dataset> LoadMnist() {
  const absl::StatusOr<DatasetFiles> files = ReadDatasetFiles("data/mnist");
  if (!files.ok()) return files.status();
  return DecodeDataset(*files);
}

int Main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const absl::StatusOr<Dataset> dataset = LoadMnist();
  if (!dataset.ok()) {
    std::fprintf(stderr, "%s\nRun it in the source tree: it reads data/mnist.\n",
                 dataset.status().ToString().c_str());
    return 1;
  }
  std::printf("FMA peak of one core: %.1f GFLOP/s\n", Peak());
  RegisterGemms();
  for (const VectorKernels* kernels : AvailableVectorKernels()) {
    RegisterKernels(&*dataset, kernels);
  }
  for (const ExactKernels* kernels : AvailableExactKernels()) RegisterExact(&*dataset, kernels);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace
}  // namespace ringmaster

int main(int argc, char** argv) { return ringmaster::Main(argc, argv); }
