// The trainer's own decisions, over a backend without arithmetic: what comes in which order, where
// all ranks stop, and how a run ends when something fails.

#include "worker/trainer.h"

#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/communicator_fixture.h"
#include "tests/worker/trainer_fixture.h"
#include "worker/solo_communicator.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Phase = TrainPosition::Phase;

// 7 samples in batches of 3: steps of 3, 3 and 1.
TrainerOptions SmallOptions(uint32_t epochs) {
  TrainerOptions options;
  options.plan = {/*seed=*/1, /*num_samples=*/7, /*global_batch=*/3};
  options.epochs = epochs;
  options.num_test_samples = 5;
  options.step_timeout = absl::Seconds(60);
  return options;
}

// A communicator with a peer that has gone.
class BrokenCommunicator : public SoloCommunicator {
 public:
  absl::Status Poll() override { return absl::UnavailableError("lost rank 7"); }
};

class TrainerTest : public testing::Test {
 protected:
  TrainerTest() { EXPECT_EQ(backend_.SetWorld(0, 1), absl::OkStatus()); }

  absl::Status Run(uint32_t epochs, TrainPosition from = {}) {
    Trainer trainer(SmallOptions(epochs), &backend_, &communicator_, &observer_);
    const absl::Status status = trainer.Run(from);
    position_ = trainer.position();
    steps_done_ = trainer.steps_done();
    return status;
  }

  LateBackend backend_;
  SoloCommunicator communicator_;
  RecordingObserver observer_;
  TrainPosition position_;
  uint64_t steps_done_ = 0;
};

std::string Story(const std::vector<FinishedStep>& steps) {
  std::string story;
  for (const FinishedStep& step : steps) {
    story += std::to_string(step.epoch) + (step.evaluation ? "e" : ".") +
             std::to_string(step.step) + "=" + std::to_string(step.reduced.record.samples) + " ";
  }
  return story;
}

TEST_F(TrainerTest, StepsThenEvaluationEpochAfterEpoch) {
  EXPECT_EQ(Run(2), absl::OkStatus());
  EXPECT_EQ(Story(observer_.steps), "0.0=3 0.1=3 0.2=1 0e0=5 1.0=3 1.1=3 1.2=1 1e0=5 ");
  EXPECT_THAT(observer_.positions, ElementsAre(TrainPosition{1, 0, Phase::kTrain}));
  EXPECT_EQ(observer_.states[0].step, 3u);
  EXPECT_EQ(steps_done_, 6u);
  EXPECT_EQ(position_, (TrainPosition{2, 0, Phase::kDone}));
}

TEST_F(TrainerTest, EpochSecondsAreOnTheLastTrainingStepOnly) {
  EXPECT_EQ(Run(1), absl::OkStatus());
  for (const FinishedStep& step : observer_.steps) {
    const bool is_last = step.step == 2;
    EXPECT_EQ(step.epoch_seconds > 0, is_last) << step.step;
  }
}

TEST_F(TrainerTest, GoesOnFromAnyPosition) {
  EXPECT_EQ(Run(2, {1, 1, Phase::kTrain}), absl::OkStatus());
  EXPECT_EQ(Story(observer_.steps), "1.1=3 1.2=1 1e0=5 ");
  observer_.steps.clear();
  EXPECT_EQ(Run(2, {0, 3, Phase::kEvaluate}), absl::OkStatus());
  EXPECT_EQ(Story(observer_.steps), "0e0=5 1.0=3 1.1=3 1.2=1 1e0=5 ");
  observer_.steps.clear();
  EXPECT_EQ(Run(2, {2, 0, Phase::kDone}), absl::OkStatus());
  EXPECT_EQ(Story(observer_.steps), "");
  EXPECT_EQ(position_, (TrainPosition{2, 0, Phase::kDone}));
}

TEST_F(TrainerTest, PositionOfAnotherPlanIsRefused) {
  EXPECT_EQ(Run(2, {0, 4, Phase::kTrain}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Story(observer_.steps), "");
}

TEST_F(TrainerTest, PositionIsTheOldestStepThatIsNotFinished) {
  Trainer trainer(SmallOptions(1), &backend_, &communicator_, &observer_);
  std::vector<TrainPosition> positions;
  observer_.on_step = [&](const FinishedStep&) { positions.push_back(trainer.position()); };
  EXPECT_EQ(trainer.Run({}), absl::OkStatus());
  EXPECT_THAT(
      positions,
      ElementsAre(TrainPosition{0, 1, Phase::kTrain}, TrainPosition{0, 2, Phase::kTrain},
                  TrainPosition{0, 3, Phase::kEvaluate}, TrainPosition{1, 0, Phase::kDone}));
}

// Records come late: what is copied out must be collected first.
TEST_F(TrainerTest, StateIsHandedOverWithItsExactPosition) {
  LateBackend late(/*lag=*/2);
  ASSERT_EQ(late.SetWorld(0, 1), absl::OkStatus());
  TrainerOptions options = SmallOptions(1);
  options.plan.num_samples = 60;
  observer_.wants_state = [](const FinishedStep& step) { return step.step % 5 == 4; };
  Trainer trainer(options, &late, &communicator_, &observer_);
  EXPECT_EQ(trainer.Run({}), absl::OkStatus());
  ASSERT_GE(observer_.states.size(), 3u);
  for (size_t i = 0; i < observer_.states.size(); ++i) {
    EXPECT_EQ(observer_.states[i].step, observer_.positions[i].step);
  }
}

TEST_F(TrainerTest, FlagTravelsInOneStep) {
  Trainer trainer(SmallOptions(2), &backend_, &communicator_, &observer_);
  trainer.RaiseFlag(tail::kFlagRegroup);
  trainer.RaiseFlag(tail::kFlagRegroup);
  EXPECT_EQ(trainer.Run({}).code(), absl::StatusCode::kCancelled);
  std::string raised;
  for (const FinishedStep& step : observer_.steps) {
    for (const uint32_t flag : step.reduced.record.flags) raised += std::to_string(flag);
    raised += " ";
  }
  EXPECT_EQ(raised, "1 0 0 ");
}

// The flag is raised when no step of the epoch is left to carry it.
TEST_F(TrainerTest, FlagAtTheEndOfAnEpochTravelsInTheNext) {
  Trainer trainer(SmallOptions(2), &backend_, &communicator_, &observer_);
  observer_.on_step = [&](const FinishedStep& step) {
    if (step.epoch == 0 && step.step == 2) trainer.RaiseFlag(tail::kFlagRegroup);
  };
  EXPECT_EQ(trainer.Run({}).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(Story(observer_.steps), "0.0=3 0.1=3 0.2=1 0e0=5 1.0=3 1.1=3 1.2=1 ");
  EXPECT_EQ(observer_.steps[4].reduced.record.flags[tail::kFlagRegroup], 1u);
  EXPECT_EQ(trainer.position(), (TrainPosition{1, 3, Phase::kEvaluate}));
}

TEST_F(TrainerTest, FlagAfterTheLastStepIsForgotten) {
  Trainer trainer(SmallOptions(1), &backend_, &communicator_, &observer_);
  observer_.on_step = [&](const FinishedStep& step) {
    if (step.step == 2) trainer.RaiseFlag(tail::kFlagRegroup);
  };
  EXPECT_EQ(trainer.Run({}), absl::OkStatus());
  EXPECT_EQ(trainer.position(), (TrainPosition{1, 0, Phase::kDone}));
}

// Steps are applied whose records nobody has asked for yet.
TEST_F(TrainerTest, StepsAppliedBeforeAnErrorAreToldAll) {
  LateBackend late(/*lag=*/2);
  ASSERT_EQ(late.SetWorld(0, 1), absl::OkStatus());
  TrainerOptions options = SmallOptions(1);
  options.plan.num_samples = 60;
  Trainer trainer(options, &late, &communicator_, &observer_);
  observer_.on_step = [&](const FinishedStep& step) {
    if (step.step == 4) late.gradient_status = absl::UnavailableError("lost rank 7");
  };
  EXPECT_EQ(trainer.Run({}).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(trainer.position(), (TrainPosition{0, 7, Phase::kTrain}));
  EXPECT_EQ(observer_.steps.size(), 7u);
  const auto state = late.GetState();
  ASSERT_TRUE(state.ok());
  EXPECT_EQ(state->step, 7u);
}

TEST_F(TrainerTest, ErrorTellsRankEpochAndStep) {
  observer_.on_step = [&](const FinishedStep& step) {
    if (step.step == 1) backend_.gradient_status = absl::InternalError("out of luck");
  };
  EXPECT_EQ(Run(2), absl::InternalError("rank 0 of 1, epoch 0, step 2: out of luck"));
  EXPECT_EQ(position_, (TrainPosition{0, 2, Phase::kTrain}));
  EXPECT_EQ(steps_done_, 2u);
  EXPECT_TRUE(backend_.poisoned());
  EXPECT_EQ(communicator_.AllReduceSum(DeviceSpan()).code(), absl::StatusCode::kAborted);
}

TEST_F(TrainerTest, StepThatNeverEndsIsGivenUp) {
  backend_.collect_status = absl::DeadlineExceededError("still at it");
  TrainerOptions options = SmallOptions(1);
  options.step_timeout = absl::Milliseconds(50);
  Trainer trainer(options, &backend_, &communicator_, &observer_);
  EXPECT_EQ(trainer.Run({}),
            absl::DeadlineExceededError("rank 0 of 1, epoch 0, step 0: still at it"));
  EXPECT_TRUE(backend_.poisoned());
}

// An asynchronous communicator tells of a lost peer through Poll() alone.
TEST_F(TrainerTest, LostPeerEndsTheWaitForTheDevice) {
  backend_.collect_status = absl::DeadlineExceededError("still at it");
  BrokenCommunicator broken;
  Trainer trainer(SmallOptions(1), &backend_, &broken, &observer_);
  EXPECT_EQ(trainer.Run({}), absl::UnavailableError("rank 0 of 1, epoch 0, step 0: lost rank 7"));
}

TEST_F(TrainerTest, AbortLastsForLaterRuns) {
  Trainer trainer(SmallOptions(2), &backend_, &communicator_, &observer_);
  observer_.on_step = [&](const FinishedStep& step) {
    if (step.step == 1) trainer.Abort();
  };
  EXPECT_EQ(trainer.Run({}).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Story(observer_.steps), "0.0=3 0.1=3 ");
  EXPECT_EQ(trainer.position(), (TrainPosition{0, 2, Phase::kTrain}));
  EXPECT_EQ(trainer.Run({}).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(observer_.steps.size(), 2u);
}

// Three ranks whose records come at different times. Rank 1 raises the flag in `raise_in` of epoch
// 0; every rank must have stopped at the same place. Returns how many steps and evaluations they
// saw.
size_t StoppedAfter(uint32_t raise_in, uint32_t num_samples) {
  constexpr int kWorldSize = 3;
  auto world = MakeGlooWorld(kWorldSize);
  EXPECT_EQ(world.status(), absl::OkStatus());
  TrainerOptions options = SmallOptions(2);
  options.plan.num_samples = num_samples;
  std::vector<RecordingObserver> observers(kWorldSize);
  std::vector<TrainPosition> positions(kWorldSize);
  ForEachRank(kWorldSize, [&](int rank) {
    LateBackend backend(/*lag=*/rank);
    EXPECT_EQ(backend.SetWorld(rank, kWorldSize), absl::OkStatus());
    Trainer trainer(options, &backend, &(*world)[rank]->communicator(), &observers[rank]);
    if (rank == 1) {
      // Its records come one step late: the flag of step s is raised when s - 2 is seen.
      if (raise_in == 0) trainer.RaiseFlag(tail::kFlagRegroup);
      observers[rank].on_step = [&trainer, raise_in](const FinishedStep& step) {
        if (step.step + 2 == raise_in) trainer.RaiseFlag(tail::kFlagRegroup);
      };
    }
    EXPECT_EQ(trainer.Run({}).code(), absl::StatusCode::kCancelled);
    positions[rank] = trainer.position();
    EXPECT_FALSE(backend.poisoned());
  });
  for (int rank = 1; rank < kWorldSize; ++rank) {
    EXPECT_EQ(Story(observers[rank].steps), Story(observers[0].steps)) << "rank " << rank;
    EXPECT_EQ(positions[rank], positions[0]) << "rank " << rank;
  }
  return observers[0].steps.size();
}

TEST(TrainerStop, AllRanksStopAtOneStepThoughRecordsComeLate) {
  // The record of step s is everywhere kMaxInFlight - 1 steps later.
  for (const uint32_t raise_in : {0, 2, 5}) {
    EXPECT_EQ(StoppedAfter(raise_in, /*num_samples=*/60), raise_in + LateBackend::kMaxInFlight);
  }
}

TEST(TrainerStop, AnEpochThatEndsFirstEndsTheWaitForTheRecord) {
  EXPECT_EQ(StoppedAfter(/*raise_in=*/18, /*num_samples=*/60), 20u);
  EXPECT_EQ(StoppedAfter(/*raise_in=*/19, /*num_samples=*/60), 20u);
}

}  // namespace
}  // namespace ringmaster
