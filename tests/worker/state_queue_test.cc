#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/state_sender.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;

std::vector<uint64_t> Drain(StateQueue* queue) {
  std::vector<uint64_t> positions;
  while (!queue->empty()) positions.push_back(queue->Take().position);
  return positions;
}

TEST(StateQueue, TheNewestOfAnEpochIsEnough) {
  StateQueue queue;
  for (uint64_t position : {10, 20, 30}) queue.Add({position, /*is_epoch_end=*/false, nullptr});
  EXPECT_THAT(Drain(&queue), ElementsAre(30));
}

TEST(StateQueue, EndsOfEpochsAreKeptAndSupersedeWhatCameBefore) {
  StateQueue queue;
  queue.Add({100, true, nullptr});
  queue.Add({110, false, nullptr});
  queue.Add({200, true, nullptr});
  queue.Add({210, false, nullptr});
  EXPECT_THAT(Drain(&queue), ElementsAre(100, 200, 210));
}

TEST(StateQueue, DropsTheOldestBeyondItsBound) {
  StateQueue queue;
  for (uint64_t epoch = 1; epoch <= 10; ++epoch) queue.Add({epoch * 100, true, nullptr});
  EXPECT_THAT(Drain(&queue), ElementsAre(300, 400, 500, 600, 700, 800, 900, 1000));
}

}  // namespace
}  // namespace ringmaster
