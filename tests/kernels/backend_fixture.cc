#include "tests/kernels/backend_fixture.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/instruction_set.h"
#include "kernels/exact.h"
#include "kernels/tail_io.h"

namespace ringmaster {
namespace {

constexpr absl::Duration kCollectTimeout = absl::Seconds(60);
constexpr absl::string_view kExactPrefix = "exact_";

// "AVX-512" is "avx512" in a test's name.
std::string ShortName(const char* name) {
  return absl::AsciiStrToLower(absl::StrReplaceAll(name, {{"-", ""}}));
}

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuMember(const std::string& implementation,
                                                         const BackendOptions& options,
                                                         const Dataset& dataset) {
  for (const VectorKernels* kernels : AvailableVectorKernels()) {
    const std::string prefix = absl::StrCat("cpu_", ShortName(kernels->name));
    if (implementation == absl::StrCat(prefix, "_sparse")) {
      return CreateTunedCpuBackend(options, dataset, {kernels, CpuTuning::Input::kSparse});
    }
    if (implementation == absl::StrCat(prefix, "_dense")) {
      return CreateTunedCpuBackend(options, dataset, {kernels, CpuTuning::Input::kDense});
    }
  }
  for (const ExactKernels* kernels : AvailableExactKernels()) {
    if (implementation == absl::StrCat("cpu_", ShortName(kernels->name))) {
      CpuTuning tuning;
      tuning.exact_kernels = kernels;
      return CreateTunedCpuBackend(options, dataset, tuning);
    }
  }
  return absl::UnavailableError(absl::StrCat("this CPU cannot run ", implementation));
}

// A small generator of the tests' own.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}

  uint32_t Below(uint32_t bound) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>((state_ >> 33) % bound);
  }
  float Between(float low, float high) {
    return low + (high - low) * static_cast<float>(Below(1u << 24)) * 0x1p-24f;
  }

 private:
  uint64_t state_;
};

DatasetSplit MakeSplit(const DatasetShape& shape, uint32_t samples, uint64_t seed) {
  Random random(seed);
  const int pixels = shape.rows * shape.columns;
  DatasetSplit split;
  split.num_samples = samples;
  for (uint32_t i = 0; i < samples; ++i) {
    const auto label = static_cast<uint8_t>(random.Below(shape.classes));
    split.labels.push_back(label);
    for (int p = 0; p < pixels; ++p) {
      const bool is_stripe = p % shape.classes == label && random.Below(2) == 0;
      const bool is_zero = random.Below(100) < static_cast<uint32_t>(shape.zero_percent);
      const uint32_t value = is_stripe ? 128 + random.Below(128) : is_zero ? 0 : random.Below(256);
      split.images.push_back(static_cast<uint8_t>(value));
    }
  }
  return split;
}

void ExpectSameRecord(const ReducedRecord& a, const ReducedRecord& b, size_t rank) {
  EXPECT_EQ(a.record, b.record) << "rank " << rank;
  ASSERT_EQ(a.rank_times.size(), b.rank_times.size()) << "rank " << rank;
}

template <typename T>
std::vector<T> ReadElements(Backend& backend, DeviceSpan span) {
  std::vector<T> values(span.count);
  EXPECT_EQ(backend.ReadBuffer(span, values.data()), absl::OkStatus());
  return values;
}

template <typename T>
void SumElements(const std::vector<std::unique_ptr<Backend>>& ranks,
                 DeviceSpan (Backend::*which)()) {
  std::vector<T> sum = ReadElements<T>(*ranks[0], (*ranks[0].*which)());
  for (size_t r = 1; r < ranks.size(); ++r) {
    const std::vector<T> part = ReadElements<T>(*ranks[r], (*ranks[r].*which)());
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
  }
  for (const auto& rank : ranks) {
    EXPECT_EQ(rank->WriteBuffer(sum.data(), (*rank.*which)()), absl::OkStatus());
  }
}

// What a communicator does: every rank's span becomes the sum.
void SumSpans(const std::vector<std::unique_ptr<Backend>>& ranks, DeviceSpan (Backend::*which)()) {
  if (IsExact(*ranks[0])) {
    SumElements<uint64_t>(ranks, which);
  } else {
    SumElements<float>(ranks, which);
  }
}

PositionRange SliceFor(Backend& backend, PositionRange whole, size_t rank, size_t world_size) {
  return SliceForRank(whole, rank, world_size, SliceGranularity(IsExact(backend)));
}

ReducedRecord CollectOne(Backend& backend) {
  auto records = backend.Collect(true, kCollectTimeout);
  EXPECT_EQ(records.status(), absl::OkStatus());
  if (!records.ok() || records->size() != 1) {
    ADD_FAILURE() << "wanted one record";
    return {};
  }
  return records->front();
}

}  // namespace

bool IsExact(const std::string& implementation) {
  return absl::StartsWith(implementation, kExactPrefix);
}

bool IsExact(Backend& backend) { return backend.reduce_buffer().element == Element::kInt64; }

std::vector<std::string> ExactBackendImplementations() {
  return {"exact_cpu",          "exact_cpu_avx512", "exact_cpu_avx2",
          "exact_cpu_portable", "exact_cuda",       "exact_cuda_emulated"};
}

std::vector<std::string> FastBackendImplementations() {
  return {"cpu",
          "cpu_avx512_sparse",
          "cpu_avx512_dense",
          "cpu_avx2_sparse",
          "cpu_avx2_dense",
          "cpu_portable_sparse",
          "cpu_portable_dense",
          "cuda",
          "exact_cpu",
          "exact_cuda"};
}

std::vector<std::string> BackendImplementations() {
  std::vector<std::string> implementations = FastBackendImplementations();
  implementations.push_back("cuda_emulated");
  for (const std::string& exact : ExactBackendImplementations()) {
    if (std::find(implementations.begin(), implementations.end(), exact) == implementations.end()) {
      implementations.push_back(exact);
    }
  }
  return implementations;
}

absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(const std::string& implementation,
                                                       const BackendOptions& options,
                                                       const Dataset& dataset) {
  if (IsExact(implementation)) {
    BackendOptions exact = options;
    exact.reproducible = true;
    exact.plan.granularity = SliceGranularity(true);
    return CreateBackend(implementation.substr(kExactPrefix.size()), exact, dataset);
  }
  if (implementation == "cpu") return CreateCpuBackend(options, dataset);
  if (implementation == "cuda") return CreateCudaMember(options, dataset);
  if (implementation == "cuda_emulated") return CreateEmulatedMember(options, dataset);
  return CreateCpuMember(implementation, options, dataset);
}

Dataset MakeDataset(const DatasetShape& shape) {
  Dataset dataset;
  dataset.rows = shape.rows;
  dataset.columns = shape.columns;
  dataset.num_classes = shape.classes;
  dataset.train = MakeSplit(shape, shape.train, 1);
  dataset.test = MakeSplit(shape, shape.test, 2);
  return dataset;
}

BackendOptions MakeOptions(const std::vector<int>& layers, const Dataset& dataset,
                           uint32_t global_batch) {
  BackendOptions options;
  options.model.layers = layers;
  options.plan = {77, dataset.train.num_samples, global_batch};
  return options;
}

TrainState BusyState(const ModelSpec& model, uint64_t seed) {
  Random random(seed);
  TrainState state = InitialState(model, seed);
  for (float& w : state.parameters) w += random.Between(-0.05f, 0.05f);
  for (float& m : state.first_moment) m = random.Between(-1e-3f, 1e-3f);
  for (float& v : state.second_moment) v = random.Between(1e-7f, 1e-5f);
  state.step = 3;
  return state;
}

std::vector<uint32_t> SamplesAt(const SamplingPlan& plan, uint32_t epoch, PositionRange slice) {
  const Permutation order = plan.Order(epoch);
  std::vector<uint32_t> samples;
  for (uint32_t i = slice.first; i < slice.end(); ++i) samples.push_back(order(i));
  return samples;
}

uint64_t DigestOf(const std::vector<uint32_t>& samples) {
  uint64_t digest = 0;
  for (const uint32_t sample : samples) digest += SampleFingerprint(sample);
  return digest;
}

std::vector<float> ReadGradient(Backend& backend, const ModelSpec& model) {
  DeviceSpan span = backend.reduce_buffer();
  span.count = model.num_parameters();
  if (span.element == Element::kFloat32) return ReadElements<float>(backend, span);
  std::vector<float> gradient;
  for (const int64_t quanta : ReadElements<int64_t>(backend, span)) {
    gradient.push_back(static_cast<float>(static_cast<double>(quanta) * exact::kQuantum));
  }
  return gradient;
}

std::vector<char> ReadBytes(Backend& backend, DeviceSpan span) {
  std::vector<char> bytes(span.bytes());
  EXPECT_EQ(backend.ReadBuffer(span, bytes.data()), absl::OkStatus());
  return bytes;
}

ReducedRecord ReadOwnTail(Backend& backend, int world_size) {
  const DeviceSpan tail = backend.tail_buffer();
  if (tail.element == Element::kInt64) {
    std::vector<int64_t> own = ReadElements<int64_t>(backend, tail);
    return ReadTail({own.data(), own.size()}, world_size);
  }
  std::vector<float> own = ReadElements<float>(backend, tail);
  return ReadTail({own.data(), own.size()}, world_size);
}

StepRecord ReadOwnRecord(Backend& backend) { return ReadOwnTail(backend, 1).record; }

ReducedRecord Finish(Backend& backend) {
  EXPECT_EQ(backend.ApplyUpdate(), absl::OkStatus());
  return CollectOne(backend);
}

ReducedRecord WorldStep(const std::vector<std::unique_ptr<Backend>>& ranks, uint32_t epoch,
                        PositionRange batch) {
  for (size_t r = 0; r < ranks.size(); ++r) {
    StepWork work;
    work.epoch = epoch;
    work.slice = SliceFor(*ranks[r], batch, r, ranks.size());
    EXPECT_EQ(ranks[r]->ComputeGradient(work), absl::OkStatus());
  }
  SumSpans(ranks, &Backend::reduce_buffer);
  const ReducedRecord first = Finish(*ranks[0]);
  for (size_t r = 1; r < ranks.size(); ++r) ExpectSameRecord(Finish(*ranks[r]), first, r);
  return first;
}

ReducedRecord WorldEvaluation(const std::vector<std::unique_ptr<Backend>>& ranks,
                              PositionRange whole) {
  for (size_t r = 0; r < ranks.size(); ++r) {
    const PositionRange slice = SliceFor(*ranks[r], whole, r, ranks.size());
    EXPECT_EQ(ranks[r]->ComputeEvaluation(slice), absl::OkStatus());
  }
  SumSpans(ranks, &Backend::tail_buffer);
  std::vector<ReducedRecord> records;
  for (const auto& rank : ranks) {
    EXPECT_EQ(rank->FinishEvaluation(), absl::OkStatus());
    records.push_back(CollectOne(*rank));
  }
  for (size_t r = 1; r < ranks.size(); ++r) ExpectSameRecord(records[r], records[0], r);
  return records[0];
}

void BackendTest::SetUp() {
  const Dataset dataset = MakeDataset({});
  const auto backend = CreateBackend(GetParam(), MakeOptions({1, 2}, dataset, 1), dataset);
  if (absl::IsUnavailable(backend.status())) {
    GTEST_SKIP() << "no " << GetParam() << " here: " << backend.status().message();
  }
  ASSERT_EQ(backend.status(), absl::OkStatus());
}

std::unique_ptr<Backend> BackendTest::Make(const BackendOptions& options,
                                           const Dataset& dataset) const {
  return std::move(MakeWorld(1, options, dataset).front());
}

std::vector<std::unique_ptr<Backend>> BackendTest::MakeWorld(int world_size,
                                                             const BackendOptions& options,
                                                             const Dataset& dataset) const {
  std::vector<std::unique_ptr<Backend>> ranks;
  for (int rank = 0; rank < world_size; ++rank) {
    auto backend = CreateBackend(GetParam(), options, dataset);
    EXPECT_EQ(backend.status(), absl::OkStatus());
    EXPECT_EQ((*backend)->SetWorld(rank, world_size), absl::OkStatus());
    ranks.push_back(*std::move(backend));
  }
  return ranks;
}

std::string ImplementationName(const testing::TestParamInfo<std::string>& info) {
  return info.param;
}

}  // namespace ringmaster
