// All-reduce between two processes on this machine: the ring of GlooCommunicator against
// gloo::allreduce, taking turns within one run so that noise hits all alike.
//
//   all_reduce_bench [ROUNDS]
//
// Prints the median time of a call on rank 0, the 10th and 90th percentile, the mean, and the
// median as a part of gloo::allreduce's RING. 407,392 bytes is the gradient of 784-128-10 with its
// tail.

#include <gloo/allreduce.h>
#include <gloo/math.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "tests/worker/file_store.h"
#include "worker/gloo_communicator.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kWorldSize = 2;
constexpr int kCallsInTurn = 10;
constexpr char kAddress[] = "127.0.0.1";

struct Method {
  const char* name;
  std::function<void(float* data, size_t count)> all_reduce;
  std::vector<double> microseconds;
};

std::shared_ptr<gloo::Context> MakeContext(int rank, const std::string& directory) {
  auto device = gloo::transport::tcp::CreateDevice(kAddress);
  gloo::rendezvous::FileStore store(directory);
  auto context = std::make_shared<gloo::rendezvous::Context>(rank, kWorldSize);
  context->connectFullMesh(store, device);
  return context;
}

void GlooAllReduce(const std::shared_ptr<gloo::Context>& context,
                   gloo::AllreduceOptions::Algorithm algorithm, float* data, size_t count) {
  using Sum = void (*)(void*, const void*, const void*, size_t);
  gloo::AllreduceOptions options(context);
  options.setAlgorithm(algorithm);
  options.setOutput(data, count);
  options.setReduceFunction(static_cast<Sum>(&gloo::sum<float>));
  gloo::allreduce(options);
}

std::unique_ptr<ringmaster::GlooCommunicator> MakeRing(int rank, const std::string& directory) {
  ringmaster::FileStore store(directory);
  ringmaster::GlooCommunicator::Options options;
  options.rank = rank;
  options.world_size = kWorldSize;
  options.store = &store;
  options.listen_address = kAddress;
  auto ring = ringmaster::GlooCommunicator::Create(options);
  if (!ring.ok()) {
    std::fprintf(stderr, "%s\n", ring.status().ToString().c_str());
    std::exit(1);
  }
  return *std::move(ring);
}

void TakeTurns(std::vector<Method>& methods, size_t count, int rounds) {
  std::vector<float> data(count, 1.0f);
  for (int round = 0; round < rounds; ++round) {
    for (Method& method : methods) {
      for (int call = 0; call < kCallsInTurn; ++call) {
        std::fill(data.begin(), data.end(), 1.0f);
        const Clock::time_point start = Clock::now();
        method.all_reduce(data.data(), count);
        // The first call of a turn waits for a peer that still is at the last turn.
        if (round == 0 || call == 0) continue;
        method.microseconds.push_back(
            std::chrono::duration<double, std::micro>(Clock::now() - start).count());
      }
    }
  }
}

double Percentile(std::vector<double>& sorted, double part) {
  return sorted[static_cast<size_t>(part * static_cast<double>(sorted.size() - 1))];
}

void Print(std::vector<Method>& methods, size_t count) {
  for (Method& method : methods) std::sort(method.microseconds.begin(), method.microseconds.end());
  const double reference = Percentile(methods.back().microseconds, 0.5);
  for (Method& method : methods) {
    std::vector<double>& times = method.microseconds;
    const double median = Percentile(times, 0.5);
    const double mean =
        std::accumulate(times.begin(), times.end(), 0.0) / static_cast<double>(times.size());
    std::printf("%10zu  %-22s %9.1f %9.1f %9.1f %9.1f %8.2f\n", count * sizeof(float), method.name,
                median, Percentile(times, 0.1), Percentile(times, 0.9), mean, median / reference);
    times.clear();
  }
}

void RunRank(int rank, const std::string& directory, int rounds) {
  using Algorithm = gloo::AllreduceOptions::Algorithm;
  const auto ring = MakeRing(rank, directory);
  const auto context = MakeContext(rank, directory);
  std::vector<Method> methods = {
      {"ring (ours)",
       [&](float* data, size_t count) {
         if (!ring->AllReduceSum({data, count}).ok()) std::exit(1);
       },
       {}},
      {"gloo::allreduce BCUBE",
       [&](float* data, size_t count) { GlooAllReduce(context, Algorithm::BCUBE, data, count); },
       {}},
      {"gloo::allreduce RING",
       [&](float* data, size_t count) { GlooAllReduce(context, Algorithm::RING, data, count); },
       {}}};
  if (rank == 0) {
    std::printf("%10s  %-22s %9s %9s %9s %9s %8s\n", "bytes", "method", "median us", "p10", "p90",
                "mean", "ratio");
  }
  for (const size_t count : {size_t{33}, size_t{4096}, size_t{101848}, size_t{1048576}}) {
    TakeTurns(methods, count, count > 500000 ? rounds / 5 : rounds);
    if (rank == 0) Print(methods, count);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::max(std::atoi(argv[1]), 5) : 100;
  std::string directory = (std::filesystem::temp_directory_path() / "all_reduce.XXXXXX").string();
  if (mkdtemp(directory.data()) == nullptr) return 1;
  const pid_t child = fork();
  RunRank(child == 0 ? 1 : 0, directory, rounds);
  if (child == 0) return 0;
  int status = 0;
  waitpid(child, &status, 0);
  std::filesystem::remove_all(directory);
  return status == 0 ? 0 : 1;
}
