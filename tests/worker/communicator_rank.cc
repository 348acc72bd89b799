// A rank in a process of its own, for tests that stop or kill one:
//
//   communicator_rank STORE_DIRECTORY RANK WORLD_SIZE COUNT
//
// Sums COUNT floats over and over until that fails, then prints the status code's name.

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "common/subprocess.h"
#include "tests/worker/file_store.h"
#include "worker/gloo_communicator.h"

int main(int argc, char** argv) {
  ringmaster::DieWithParent(SIGKILL);
  if (argc != 5) return 2;
  ringmaster::FileStore store(argv[1]);
  ringmaster::GlooCommunicator::Options options;
  options.rank = std::atoi(argv[2]);
  options.world_size = std::atoi(argv[3]);
  options.store = &store;
  options.listen_address = "127.0.0.1";
  auto communicator = ringmaster::GlooCommunicator::Create(options);
  absl::Status status = communicator.status();
  std::vector<float> data(std::atoi(argv[4]), 1.0f);
  while (status.ok()) status = (*communicator)->AllReduceSum({data.data(), data.size()});
  std::puts(absl::StatusCodeToString(status.code()).c_str());
  return 0;
}
