// That the simulation can fail: what it checks is broken on purpose, one thing at a time, and it
// must notice within the seeds that every test run goes through.
#include "tests/simulation/simulation.h"

#include <ostream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "spdlog/spdlog.h"

namespace ringmaster {
namespace {

using ::testing::IsEmpty;
using ::testing::Not;

constexpr uint64_t kSeeds = 25'000;

struct Broken {
  std::string name;
  Mutation mutation;

  friend void PrintTo(const Broken& broken, std::ostream* out) { *out << broken.name; }
};

class SimulationTest : public ::testing::TestWithParam<Broken> {
 protected:
  void SetUp() override { spdlog::set_level(spdlog::level::off); }
};

TEST_P(SimulationTest, NoticesThat) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    const SimulationResult result = Simulate(seed, GetParam().mutation, 0);
    if (result.violation.empty()) continue;
    // And not for a reason that has nothing to do with it.
    const SimulationResult whole = Simulate(seed, Mutation::kNone, 0);
    EXPECT_THAT(whole.violation, IsEmpty()) << "seed " << seed;
    RecordProperty("seed", std::to_string(seed));
    std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed), result.violation.c_str());
    return;
  }
  FAIL() << "nothing was noticed in " << kSeeds << " seeds";
}

INSTANTIATE_TEST_SUITE_P(
    Mutations, SimulationTest,
    ::testing::Values(Broken{"TheDiskLies", Mutation::kLyingDisk},
                      Broken{"AcknowledgementsGoBeforeTheCommit", Mutation::kAcksBeforeCommit},
                      Broken{"OldGenerationsAreNotFenced", Mutation::kNoFencing},
                      Broken{"RecordsAreNotDeduplicated", Mutation::kNoDeduplication},
                      Broken{"NobodyIsWaitedFor", Mutation::kNoGrace},
                      Broken{"MissingRecordsAreIgnored", Mutation::kRecordsFromIgnored}),
    [](const auto& info) { return info.param.name; });

TEST(Simulation, DoesTheSameForTheSameSeed) {
  spdlog::set_level(spdlog::level::off);
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const SimulationResult first = Simulate(seed, Mutation::kNone, 0);
    const SimulationResult second = Simulate(seed, Mutation::kNone, 100'000);
    EXPECT_EQ(first.events, second.events) << "seed " << seed;
    EXPECT_EQ(first.seconds, second.seconds) << "seed " << seed;
    EXPECT_THAT(second.trace, Not(IsEmpty()));
  }
}

}  // namespace
}  // namespace ringmaster
