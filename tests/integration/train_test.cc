// Whole runs that go well: `ringmaster train`, the programs by hand, evaluate, dry run.

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/integration/run_fixture.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;

class TrainTest : public RunTest {
 protected:
  // One epoch of real MNIST with `workers` processes on CPU; returns the report.
  nlohmann::json TrainOneEpoch(int workers) {
    const std::string name = absl::StrCat("report-", workers, ".json");
    const Captured run = Run("ringmaster", {"train", "--backend", "cpu", "--epochs", "1",
                                            "--workers", absl::StrCat(workers), "--report", name,
                                            "--run-dir", absl::StrCat("run-", workers)});
    EXPECT_TRUE(run.status.ok()) << run.status.Describe() << run.out << run.error;
    return ReadJson(name);
  }
};

// The same run at any number of workers: what the coordinator's audit counted, and the result.
TEST_F(TrainTest, OneTwoThreeAndFiveWorkers) {
  double accuracy_of_one = 0;
  for (const int workers : {1, 2, 3, 5}) {
    SCOPED_TRACE(absl::StrCat(workers, " workers"));
    const nlohmann::json report = TrainOneEpoch(workers);
    EXPECT_EQ(report.value("world_size", 0), workers);
    EXPECT_EQ(report.value("samples_committed", 0), 60000);
    EXPECT_EQ(report.value("samples_expected", 0), 60000);
    EXPECT_EQ(report.value("steps", 0), 469);
    EXPECT_EQ(report.value("generations", 0), 1);
    EXPECT_EQ(report.value("seed", 0), 1);
    EXPECT_EQ(report.value("backend", ""), "cpu");
    EXPECT_EQ(report["epoch_seconds"].size(), 1u);
    EXPECT_GT(report.value("samples_per_second", 0.0), 0.0);
    EXPECT_THAT(report.value("weights_sha256", ""), MatchesRegex("[0-9a-f]{64}"));
    EXPECT_THAT(report.value("data_digest", ""), MatchesRegex("[0-9a-f]{64}"));
    const double accuracy = report.value("test_accuracy", 0.0);
    EXPECT_GT(accuracy, 0.90);
    if (workers == 1) accuracy_of_one = accuracy;
    EXPECT_NEAR(accuracy, accuracy_of_one, 0.003);
  }
}

TEST_F(TrainTest, ResultOnStdoutLogsOnStderrEverythingInTheRunDirectory) {
  const Captured run = Run("ringmaster", {"train", "--backend", "cpu", "--epochs", "1"});
  ASSERT_TRUE(run.status.ok()) << run.out << run.error;
  EXPECT_THAT(run.out, HasSubstr("60,000 of 60,000"));
  EXPECT_THAT(run.out, HasSubstr("tensorboard --logdir"));
  EXPECT_THAT(run.out, Not(HasSubstr("{\"time\"")));
  for (const auto line : absl::StrSplit(run.error, '\n', absl::SkipEmpty())) {
    const auto json = nlohmann::json::parse(std::string(line), nullptr, false);
    EXPECT_TRUE(json.is_object() && json.contains("message")) << line;
  }
  EXPECT_TRUE(Exists("runs/latest/weights.safetensors"));
  EXPECT_TRUE(Exists("runs/latest/report.json"));
  EXPECT_TRUE(Exists("runs/latest/tensorboard/train"));
  EXPECT_TRUE(Exists("runs/latest/tensorboard/validation"));
}

TEST_F(TrainTest, EvaluateFindsWhatTheReportSays) {
  const nlohmann::json report = TrainOneEpoch(2);
  const Captured run =
      Run("ringmaster", {"evaluate", "run-2/weights.safetensors", "--backend", "cpu"});
  ASSERT_TRUE(run.status.ok()) << run.error;
  const int correct = static_cast<int>(std::lround(report.value("test_accuracy", 0.0) * 10000));
  EXPECT_THAT(run.out, HasSubstr(absl::StrCat("(", correct, " of 10000)")));
  EXPECT_THAT(run.out, HasSubstr("true\\as"));
}

TEST_F(TrainTest, AnyDataSetInTheSameFormat) {
  WriteSmallDataset("small", 503, 101, 8, 3);
  const Captured run =
      Run("ringmaster", {"train", "--backend", "cpu", "--data-dir", "small", "--epochs", "3",
                         "--global-batch", "50", "--workers", "3", "--report", "report.json"});
  ASSERT_TRUE(run.status.ok()) << run.out << run.error;
  const nlohmann::json report = ReadJson("report.json");
  EXPECT_EQ(report.value("samples_committed", 0), 3 * 503);
  EXPECT_EQ(report.value("steps", 0), 3 * 11);
  EXPECT_EQ(report["epoch_seconds"].size(), 3u);
  EXPECT_GT(report.value("test_accuracy", 0.0), 0.9);
}

// More processes than samples in a batch: some ranks have nothing to do.
TEST_F(TrainTest, MoreWorkersThanSamplesInABatch) {
  WriteSmallDataset("small", 20, 5, 4, 2);
  const Captured run =
      Run("ringmaster", {"train", "--backend", "cpu", "--data-dir", "small", "--epochs", "1",
                         "--global-batch", "2", "--workers", "3", "--report", "report.json"});
  ASSERT_TRUE(run.status.ok()) << run.out << run.error;
  EXPECT_EQ(ReadJson("report.json").value("samples_committed", 0), 20);
}

TEST_F(TrainTest, SameSeedSameWeights) {
  WriteSmallDataset("small", 203, 50, 8, 3);
  std::string digests[3];
  for (int i = 0; i < 3; ++i) {
    const std::string directory = absl::StrCat("run-", i);
    const Captured run =
        Run("ringmaster", {"train", "--backend", "cpu", "--data-dir", "small", "--epochs", "1",
                           "--seed", i == 2 ? "8" : "7", "--run-dir", directory});
    ASSERT_TRUE(run.status.ok()) << run.error;
    digests[i] = ReadJson(directory + "/report.json").value("weights_sha256", "");
  }
  EXPECT_EQ(digests[0], digests[1]);
  EXPECT_NE(digests[0], digests[2]);
}

TEST_F(TrainTest, ReproducibleWeightsDoNotDependOnTheNumberOfWorkers) {
  WriteSmallDataset("small", 203, 50, 8, 3);
  std::string weights;
  for (const int workers : {1, 2, 3}) {
    const std::string directory = absl::StrCat("run-", workers);
    const Captured run = Run("ringmaster", {"train", "--reproducible", "--backend", "cpu",
                                            "--data-dir", "small", "--epochs", "2", "--workers",
                                            absl::StrCat(workers), "--run-dir", directory});
    ASSERT_TRUE(run.status.ok()) << run.out << run.error;
    const nlohmann::json report = ReadJson(directory + "/report.json");
    EXPECT_TRUE(report["config"].value("reproducible", false));
    EXPECT_EQ(report.value("world_size", 0), workers);
    if (workers == 1) weights = report.value("weights_sha256", "");
    EXPECT_THAT(weights, MatchesRegex("[0-9a-f]{64}"));
    EXPECT_EQ(report.value("weights_sha256", ""), weights);
  }
}

TEST_F(TrainTest, ByHandAsOnTwoMachines) {
  WriteSmallDataset("small", 203, 50, 8, 3);
  Running coordinator =
      Start("ringmaster-coordinator", {"--nodes", "2", "--listen", "127.0.0.1:0", "--data-dir",
                                       "small", "--epochs", "2", "--report", "report.json"});
  // It says where it listens on stderr.
  std::string address;
  ASSERT_TRUE(coordinator.Until([&] {
    const size_t at = coordinator.error().find("127.0.0.1:");
    if (at == std::string::npos) return false;
    const size_t end = coordinator.error().find_first_not_of("0123456789", at + 10);
    address = coordinator.error().substr(at, end - at);
    return end != std::string::npos;
  })) << coordinator.error();
  Running first = Start("ringmaster-worker",
                        {"--coordinator", address, "--processes", "2", "--backend", "cpu"});
  Running second = Start("ringmaster-worker",
                         {"--coordinator", address, "--backend", "cpu", "--data-dir", "small"});
  EXPECT_TRUE(first.Wait().ok()) << first.error();
  EXPECT_TRUE(second.Wait().ok()) << second.error();
  EXPECT_TRUE(coordinator.Wait().ok()) << coordinator.error();
  const nlohmann::json report = ReadJson("report.json");
  EXPECT_EQ(report.value("world_size", 0), 3);
  EXPECT_EQ(report.value("samples_committed", 0), 406);
}

TEST_F(TrainTest, DryRunShowsThePlanAndCreatesNothing) {
  const Captured run =
      Run("ringmaster", {"train", "--dry-run", "--workers", "3", "--backend", "cpu"});
  ASSERT_TRUE(run.status.ok()) << run.error;
  for (const char* part :
       {"101,770", "407,080 bytes", "469 steps an epoch (the last of 96), 2,814 in 6 epochs",
        "0..42 (43)", "43..85 (43)", "86..127 (42)", "59904..59935 (32)", "60,000 training",
        "3 processes on CPU, because the CPU was asked for", "Gloo", "runs/<UTC time>-mnist",
        "127.0.0.1, a free port"}) {
    EXPECT_THAT(run.out, HasSubstr(part));
  }
  EXPECT_FALSE(Exists("runs"));
}

TEST_F(TrainTest, FlagBeatsEnvironmentBeatsFile) {
  WriteFile("run.toml", "epochs = 2\nglobal-batch = 50\nseed = 3\n");
  const Captured run =
      Run("ringmaster",
          {"train", "--dry-run", "--backend", "cpu", "--config", "run.toml", "--epochs", "4"},
          {{"RINGMASTER_EPOCHS", "3"}, {"RINGMASTER_GLOBAL_BATCH", "60"}});
  ASSERT_TRUE(run.status.ok()) << run.error;
  EXPECT_THAT(run.out, HasSubstr("global batch 60: 1,000 steps an epoch"));
  EXPECT_THAT(run.out, HasSubstr("4,000 in 4 epochs"));
}

// The programs that train starts must see the flag too, not the environment.
TEST_F(TrainTest, EnvironmentDoesNotReachPastTheFlags) {
  WriteSmallDataset("small", 100, 20, 4, 2);
  const Captured run = Run("ringmaster",
                           {"train", "--backend", "cpu", "--data-dir", "small", "--epochs", "6",
                            "--seed", "1", "--report", "report.json"},
                           {{"RINGMASTER_EPOCHS", "2"}, {"RINGMASTER_SEED", "5"}});
  ASSERT_TRUE(run.status.ok()) << run.error;
  EXPECT_EQ(ReadJson("report.json").value("seed", 0), 1);
  EXPECT_EQ(ReadJson("report.json")["epoch_seconds"].size(), 6u);
}

// The worker must start where there is no CUDA library at all: nothing of the kind may be linked.
TEST_F(TrainTest, ProgramsLinkNoCudaLibrary) {
  for (const char* program : {"ringmaster", "ringmaster-coordinator", "ringmaster-worker"}) {
    const Captured run = Run(program, {}, {{"LD_TRACE_LOADED_OBJECTS", "1"}});
    EXPECT_THAT(run.out, HasSubstr("libgrpc")) << program;
    for (const char* library : {"libcuda", "libcudart", "libcublas", "libnccl", "not found"}) {
      EXPECT_THAT(run.out, Not(HasSubstr(library))) << program;
    }
  }
}

}  // namespace
}  // namespace ringmaster
