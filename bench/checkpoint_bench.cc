// What a checkpoint of the default model costs: its bytes made and read back in memory, and the
// whole way through the store to a disk (synced, read back, verified). From the source tree:
//   build/release/bin/checkpoint_bench            (TMPDIR chooses the disk)

#include <benchmark/benchmark.h>
#include <stdlib.h>

#include <filesystem>
#include <future>
#include <memory>
#include <string>
#include <utility>

#include "common/checkpoint.h"
#include "coordinator/checkpoint_store.h"

namespace ringmaster {
namespace {

Checkpoint DefaultCheckpoint() {
  Checkpoint checkpoint{
      .run_id = "bench", .generation = 1, .recipe = {}, .state = {}, .state_digest = ""};
  checkpoint.recipe.global_batch = 128;
  checkpoint.recipe.epochs = 6;
  checkpoint.recipe.num_train_samples = 60'000;
  checkpoint.recipe.num_test_samples = 10'000;
  checkpoint.state = InitialState(checkpoint.recipe.model, 1);
  checkpoint.state_digest = StateSha256(checkpoint.state);
  return checkpoint;
}

void CountBytes(benchmark::State& state, size_t bytes) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * bytes));
}

void Encode(benchmark::State& state) {
  const Checkpoint checkpoint = DefaultCheckpoint();
  size_t size = 0;
  for (auto _ : state) size = EncodeCheckpoint(checkpoint)->size();
  CountBytes(state, size);
}
BENCHMARK(Encode)->Unit(benchmark::kMillisecond);

void Decode(benchmark::State& state) {
  const std::string bytes = EncodeCheckpoint(DefaultCheckpoint()).value();
  for (auto _ : state) {
    if (!DecodeCheckpoint(bytes).ok()) state.SkipWithError("refused");
  }
  CountBytes(state, bytes.size());
}
BENCHMARK(Decode)->Unit(benchmark::kMillisecond);

void WriteToDisk(benchmark::State& state) {
  std::string directory = std::filesystem::temp_directory_path() / "checkpoint-bench-XXXXXX";
  if (mkdtemp(directory.data()) == nullptr) return state.SkipWithError("no directory");
  auto store = CheckpointStore::Open({directory});
  const Checkpoint checkpoint = DefaultCheckpoint();
  for (auto _ : state) {
    std::promise<bool> written;
    (*store)->Write(checkpoint, CheckpointStore::Kind::kRequired,
                    [&](const auto& path) { written.set_value(path.ok()); });
    if (!written.get_future().get()) state.SkipWithError("not written");
  }
  CountBytes(state, EncodeCheckpoint(checkpoint)->size());
  *store = nullptr;
  std::filesystem::remove_all(directory);
}
BENCHMARK(WriteToDisk)->Unit(benchmark::kMillisecond)->UseRealTime();

// What the caller pays: a copy of the state, and the queue.
void QueueOnly(benchmark::State& state) {
  std::string directory = std::filesystem::temp_directory_path() / "checkpoint-bench-XXXXXX";
  if (mkdtemp(directory.data()) == nullptr) return state.SkipWithError("no directory");
  auto store = CheckpointStore::Open({directory});
  const Checkpoint checkpoint = DefaultCheckpoint();
  for (auto _ : state) {
    (*store)->Write(checkpoint, CheckpointStore::Kind::kPeriodic, [](const auto&) {});
  }
  *store = nullptr;
  std::filesystem::remove_all(directory);
}
BENCHMARK(QueueOnly)->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
}  // namespace ringmaster

BENCHMARK_MAIN();
