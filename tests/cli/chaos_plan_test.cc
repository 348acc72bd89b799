#include "cli/chaos_plan.h"

#include <map>
#include <set>

#include "common/settings.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Lt;

using Count = ChaosSpec::Count;

// Expects INVALID_ARGUMENT with all of `parts`.
void ExpectWrong(const std::string& text, const std::vector<std::string>& parts) {
  const auto spec = ParseChaosSpec(text);
  ASSERT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument) << text;
  for (const std::string& part : parts) {
    EXPECT_THAT(std::string(spec.status().message()), HasSubstr(part)) << text;
  }
}

ChaosSpec Parsed(const std::string& text) {
  const auto spec = ParseChaosSpec(text);
  EXPECT_TRUE(spec.ok()) << spec.status();
  return spec.value_or(ChaosSpec{});
}

std::map<Fault, int> Counts(const std::vector<ChaosAction>& plan) {
  std::map<Fault, int> counts;
  for (const ChaosAction& action : plan) ++counts[action.fault];
  return counts;
}

TEST(ChaosSpecTest, ReadsEveryFaultAndTime) {
  const ChaosSpec spec = Parsed(
      "kill-all:6, kill-replay:5,kill-coordinator:4,partition:3,hang:2,kill:1,every:0.7,"
      "hang-for:2,cut-for:0.5");
  EXPECT_THAT(spec.counts,
              ElementsAre(Count{Fault::kKill, 1}, Count{Fault::kHang, 2},
                          Count{Fault::kPartition, 3}, Count{Fault::kKillCoordinator, 4},
                          Count{Fault::kKillReplay, 5}, Count{Fault::kKillAll, 6}));
  EXPECT_EQ(spec.every, absl::Milliseconds(700));
  EXPECT_EQ(spec.hang_for, absl::Seconds(2));
  EXPECT_EQ(spec.cut_for, absl::Milliseconds(500));
}

TEST(ChaosSpecTest, DefaultTimesOutlastTheDefaultPatience) {
  const ChaosSpec spec = Parsed("hang:1");
  EXPECT_EQ(spec.every, absl::Seconds(1));
  EXPECT_GT(spec.hang_for, Settings{}.patience);
  EXPECT_GT(spec.cut_for, Settings{}.patience);
}

TEST(ChaosSpecTest, SaysWhatIsWrongAndWhatIsPossible) {
  ExpectWrong("", {"nothing is to be broken", "kill:3", "partition"});
  ExpectWrong("every:2", {"nothing is to be broken in 'every:2'"});
  ExpectWrong("kil:3", {"there is no 'kil'", "did you mean kill?", "hang-for"});
  ExpectWrong("kill", {"kill wants how many", "as kill:3", "got ''"});
  ExpectWrong("kill:0", {"from 1 to 100000", "got '0'"});
  ExpectWrong("kill:100001", {"from 1 to 100000"});
  ExpectWrong("hang:-1", {"hang wants how many", "got '-1'"});
  ExpectWrong("kill:1,kill:2", {"kill is given twice"});
  ExpectWrong("kill:1,every:0", {"every wants seconds", "got '0'"});
  ExpectWrong("kill:1,every:nan", {"every wants seconds"});
  ExpectWrong("hang:1,hang-for:9999", {"hang-for wants seconds, from 0.001 to 3600"});
}

TEST(ChaosSpecTest, HelpNamesWhatCanBeParsed) {
  const std::string help = ChaosSpecHelp();
  for (const Fault fault : {Fault::kKill, Fault::kHang, Fault::kPartition, Fault::kKillCoordinator,
                            Fault::kKillReplay, Fault::kKillAll}) {
    EXPECT_THAT(help, HasSubstr("  " + FaultName(fault) + ":N "));
    EXPECT_EQ(Parsed(FaultName(fault) + ":1").counts.size(), 1u);
  }
}

TEST(ChaosPlanTest, CountsAreExact) {
  const auto plan = PlanChaos(Parsed("kill:200,hang:50,kill-coordinator:7,kill-all:1"), 3);
  EXPECT_THAT(Counts(plan),
              ElementsAre(std::pair(Fault::kKill, 200), std::pair(Fault::kHang, 50),
                          std::pair(Fault::kKillCoordinator, 7), std::pair(Fault::kKillAll, 1)));
}

TEST(ChaosPlanTest, IsDecidedBySpecAndSeed) {
  const ChaosSpec spec = Parsed("kill:20,hang:20,kill-replay:20");
  EXPECT_EQ(PlanChaos(spec, 7), PlanChaos(spec, 7));
  EXPECT_NE(PlanChaos(spec, 7), PlanChaos(spec, 8));
  // Written down: a plan must stay what it was when a run was recorded.
  EXPECT_THAT(PlanLines(PlanChaos(Parsed("kill:2,hang:1,kill-coordinator:1,every:0.5"), 1)),
              ElementsAre("+1.931s kill@384, +0.377s hang@665, +0.227s kill-coordinator@776, "
                          "+0.118s kill@307"));
}

TEST(ChaosPlanTest, MixesTheFaults) {
  const auto plan = PlanChaos(Parsed("kill:50,hang:50"), 1);
  const std::vector<ChaosAction> first_half(plan.begin(), plan.begin() + 50);
  EXPECT_THAT(Counts(first_half)[Fault::kKill], AllOf(testing::Gt(10), Lt(40)));
}

TEST(ChaosPlanTest, WaitsHaveTheMeanAskedFor) {
  absl::Duration sum;
  const auto plan = PlanChaos(Parsed("kill:10000,every:0.7"), 1);
  for (const ChaosAction& action : plan) sum += action.wait;
  // The mean of 10,000 exponentially distributed numbers has a standard deviation of 1 %.
  EXPECT_NEAR(absl::ToDoubleSeconds(sum) / 10000, 0.7, 0.03);
}

TEST(ChaosPlanTest, PicksEveryMember) {
  std::set<uint32_t> members;
  for (const ChaosAction& action : PlanChaos(Parsed("kill:100"), 1)) {
    members.insert(MemberIndex(action.pick, 3));
  }
  EXPECT_THAT(members, ElementsAre(0, 1, 2));
  EXPECT_EQ(MemberIndex(999, 1), 0u);
  EXPECT_EQ(MemberIndex(999, 3), 2u);
}

TEST(ChaosPlanTest, OnlyASuccessorThatIsKilledHasAnAge) {
  std::set<absl::Duration> ages;
  for (const ChaosAction& action : PlanChaos(Parsed("kill:50,kill-replay:50"), 1)) {
    if (action.fault == Fault::kKillReplay) ages.insert(action.successor_age);
    if (action.fault == Fault::kKill) {
      EXPECT_EQ(action.successor_age, absl::ZeroDuration());
    }
  }
  EXPECT_GT(ages.size(), 10u);
  EXPECT_THAT(ages, Each(Lt(absl::Milliseconds(100))));
}

}  // namespace
}  // namespace ringmaster
