// checkpoint_writer DIRECTORY COUNT: writes checkpoints 1 to COUNT (tests/checkpoints.h) to a
// CheckpointStore, one after the other, and tells each that is done on standard output. For
// checkpoint_crash_test, which kills it.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "coordinator/checkpoint_store.h"
#include "tests/checkpoints.h"

int main(int, char** argv) {
  using ringmaster::CheckpointStore;
  auto store = CheckpointStore::Open({argv[1]});
  if (!store.ok()) return 2;
  const uint64_t count = std::strtoull(argv[2], nullptr, 10);
  for (uint64_t position = 1; position <= count; ++position) {
    (*store)->Write(ringmaster::CheckpointAt(position), CheckpointStore::Kind::kRequired,
                    [position](const absl::StatusOr<std::string>& path) {
                      if (!path.ok()) std::_Exit(3);
                      std::printf("%llu\n", static_cast<unsigned long long>(position));
                      std::fflush(stdout);
                    });
  }
}
