// What the communicator tests share: worlds of ranks as threads of one process, each with memory
// of the kind its communicator sums.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "worker/communicator.h"

namespace ringmaster {

// A rank of a world under test.
class TestRank {
 public:
  virtual ~TestRank() = default;
  virtual Communicator& communicator() = 0;
  // Memory for `count` elements, up to the longest of the suite.
  virtual DeviceSpan data(size_t count, Element element = Element::kFloat32) = 0;
  // Copies to the memory, and back when the sum is there. host: span.count elements.
  virtual absl::Status Write(const void* host, DeviceSpan span) = 0;
  virtual absl::Status Read(DeviceSpan span, void* host) = 0;
};

using World = std::vector<std::unique_ptr<TestRank>>;

// The gradient of the default model with its tail.
size_t LongestCount(int world_size);

// Calls `rank(r)` for each r below world_size, each in a thread of its own, and joins them.
void ForEachRank(int world_size, const std::function<void(int)>& rank);

// UNAVAILABLE, with the reason, where this machine cannot run such a world.
absl::StatusOr<World> MakeSoloWorld();
absl::StatusOr<World> MakeGlooWorld(int world_size, absl::Duration timeout = absl::Seconds(60));
// A GPU for each rank.
absl::StatusOr<World> MakeNcclWorld(int world_size);

}  // namespace ringmaster
