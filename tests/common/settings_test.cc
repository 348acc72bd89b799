#include "common/settings.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "common/settings_table.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/temporary_directory.h"

namespace ringmaster {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// Parses for one program, with an environment and a config file of the test's own.
class SettingsTest : public ::testing::Test {
 protected:
  ~SettingsTest() override {
    for (const std::string& name : variables_) unsetenv(name.c_str());
  }

  void SetVariable(const std::string& name, const std::string& value) {
    setenv(name.c_str(), value.c_str(), 1);
    variables_.push_back(name);
  }

  std::string WriteConfig(const std::string& text) {
    const std::string path = directory_.File("settings.toml");
    std::ofstream(path) << text;
    return path;
  }

  bool Parse(Program program, const std::vector<std::string>& args) {
    settings_ = Settings{};
    exit_ = EarlyExit{};
    return ParseSettings(program, "prog", args, &settings_, &exit_);
  }

  // Expects exit code 2 with a message that has all of `parts`.
  void ExpectWrong(Program program, const std::vector<std::string>& args,
                   const std::vector<std::string>& parts) {
    ASSERT_FALSE(Parse(program, args));
    EXPECT_EQ(exit_.code, 2);
    for (const std::string& part : parts) EXPECT_THAT(exit_.text, HasSubstr(part));
  }

  Settings settings_;
  EarlyExit exit_;
  std::vector<std::string> variables_;
  const TemporaryDirectory directory_;
};

TEST_F(SettingsTest, DefaultsAreTheKerasExample) {
  ASSERT_TRUE(Parse(kProgramTrain, {})) << exit_.text;
  EXPECT_EQ(settings_.epochs, 6u);
  EXPECT_EQ(settings_.global_batch, 128u);
  EXPECT_EQ(settings_.seed, 1u);
  EXPECT_EQ(settings_.optimizer.learning_rate, 1e-3f);
  EXPECT_EQ(settings_.join_timeout, absl::Seconds(600));
  EXPECT_THAT(settings_.layers, IsEmpty());
}

TEST_F(SettingsTest, EveryFlagOfTrainArrives) {
  ASSERT_TRUE(Parse(kProgramTrain, {"--epochs",
                                    "3",
                                    "--global-batch=64",
                                    "--layers",
                                    "784,32,10",
                                    "--optimizer",
                                    "sgd",
                                    "--learning-rate",
                                    "0.5",
                                    "--seed",
                                    "18446744073709551615",
                                    "--data-dir",
                                    "d",
                                    "--run-dir",
                                    "r",
                                    "--name",
                                    "n",
                                    "--report",
                                    "f",
                                    "--workers",
                                    "2",
                                    "--listen",
                                    "[::1]:0",
                                    "--join-timeout",
                                    "1.5",
                                    "--backend",
                                    "cpu",
                                    "--threads",
                                    "4",
                                    "--cuda-libs",
                                    "a:b",
                                    "--dry-run",
                                    "--progress",
                                    "lines",
                                    "-vv"}))
      << exit_.text;
  EXPECT_EQ(settings_.epochs, 3u);
  EXPECT_EQ(settings_.global_batch, 64u);
  EXPECT_EQ(settings_.layers, (std::vector<int>{784, 32, 10}));
  EXPECT_EQ(settings_.optimizer.kind, OptimizerSpec::Kind::kSgd);
  EXPECT_EQ(settings_.optimizer.learning_rate, 0.5f);
  EXPECT_EQ(settings_.seed, std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(settings_.data_dir, "d");
  EXPECT_EQ(settings_.run_dir, "r");
  EXPECT_EQ(settings_.name, "n");
  EXPECT_EQ(settings_.report, "f");
  EXPECT_EQ(settings_.workers, (CountRange{2, 2}));
  EXPECT_EQ(settings_.listen, "[::1]:0");
  EXPECT_EQ(settings_.join_timeout, absl::Seconds(1.5));
  EXPECT_EQ(settings_.backend, BackendChoice::kCpu);
  EXPECT_EQ(settings_.threads, 4);
  EXPECT_EQ(settings_.cuda_libs, "a:b");
  EXPECT_TRUE(settings_.dry_run);
  EXPECT_EQ(settings_.progress, "lines");
  EXPECT_EQ(settings_.verbosity, 2);
}

TEST_F(SettingsTest, FlagBeatsEnvironmentBeatsFileBeatsDefault) {
  const std::string config = WriteConfig("epochs = 4\nseed = 40\nname = \"file\"\n");
  SetVariable("RINGMASTER_EPOCHS", "5");
  SetVariable("RINGMASTER_SEED", "50");
  ASSERT_TRUE(Parse(kProgramTrain, {"--config", config, "--epochs", "9"})) << exit_.text;
  EXPECT_EQ(settings_.epochs, 9u);          // flag
  EXPECT_EQ(settings_.seed, 50u);           // environment
  EXPECT_EQ(settings_.name, "file");        // file
  EXPECT_EQ(settings_.global_batch, 128u);  // default
}

TEST_F(SettingsTest, ConfigFileFromTheEnvironmentWithArraysAndSwitches) {
  SetVariable("RINGMASTER_CONFIG",
              WriteConfig("layers = [784, 64, 10]\ndry-run = true\n# of another program\n"
                          "coordinator = \"h:1\"\n"));
  ASSERT_TRUE(Parse(kProgramTrain, {})) << exit_.text;
  EXPECT_EQ(settings_.layers, (std::vector<int>{784, 64, 10}));
  EXPECT_TRUE(settings_.dry_run);
}

TEST_F(SettingsTest, LastOfTwoFlagsCounts) {
  ASSERT_TRUE(Parse(kProgramTrain, {"--epochs", "3", "--epochs", "4"})) << exit_.text;
  EXPECT_EQ(settings_.epochs, 4u);
}

TEST_F(SettingsTest, LearningRateDefaultFollowsTheOptimizer) {
  ASSERT_TRUE(Parse(kProgramTrain, {"--optimizer", "sgd"})) << exit_.text;
  EXPECT_EQ(settings_.optimizer.learning_rate, 0.01f);
  ASSERT_TRUE(Parse(kProgramTrain, {"--learning-rate", "0.2", "--optimizer", "sgd"}));
  EXPECT_EQ(settings_.optimizer.learning_rate, 0.2f);
}

TEST_F(SettingsTest, WrongValueNamesWhereItStandsAndWhatIsAllowed) {
  ExpectWrong(
      kProgramTrain, {"--epochs", "many"},
      {"prog: --epochs: wants a whole number from 1 to 1000000, got 'many'", "Try 'prog --help'"});
  ExpectWrong(kProgramTrain, {"--epochs", "-1"}, {"got '-1'"});
  ExpectWrong(kProgramTrain, {"--learning-rate", "nan"}, {"a number above 0", "got 'nan'"});
  ExpectWrong(kProgramTrain, {"--layers", "784"}, {"at least two widths"});
  ExpectWrong(kProgramTrain, {"--layers", "784,x,10"}, {"separated by commas"});
  ExpectWrong(kProgramTrain, {"--optimizer", "lion"}, {"wants adam or sgd, got 'lion'"});
  ExpectWrong(kProgramTrain, {"--workers", "3:2"}, {"--workers", "MIN:MAX"});
  ExpectWrong(kProgramTrain, {"--listen", "here"}, {"HOST:PORT"});
  ExpectWrong(kProgramTrain, {"--listen", "::1:80"}, {"[::1]:29400"});
  ExpectWrong(kProgramWorker, {"--coordinator", "h:0"}, {"a port from 1 to 65535"});
  ExpectWrong(kProgramWorker, {"--processes", "0"}, {"auto, gpu, cpu or a number"});
  ExpectWrong(kProgramTrain, {"--join-timeout", "0"}, {"seconds above 0"});
  ExpectWrong(kProgramTrain, {"--dry-run=maybe"}, {"--dry-run"});
  SetVariable("RINGMASTER_SEED", "x");
  ExpectWrong(kProgramTrain, {}, {"RINGMASTER_SEED: wants a whole number", "got 'x'"});
}

TEST_F(SettingsTest, UnknownOptionGetsASuggestion) {
  ExpectWrong(kProgramTrain, {"--worker", "3"},
              {"unknown option --worker; did you mean --workers?"});
  ExpectWrong(kProgramTrain, {"--xyzzy"}, {"unknown option --xyzzy\n"});
  ExpectWrong(kProgramWorker, {"--epochs", "3"},
              {"--epochs is not an option here, but of ringmaster train, ringmaster-coordinator"});
  ExpectWrong(kProgramTrain, {"fast"}, {"unexpected argument 'fast'"});
  ExpectWrong(kProgramTrain, {"--epochs"}, {"--epochs needs a value"});
}

TEST_F(SettingsTest, BadConfigFileIsNamed) {
  ExpectWrong(kProgramTrain, {"--config", "/nowhere.toml"}, {"/nowhere.toml", "cannot be read"});
  const std::string config = WriteConfig("epoch = 3\n");
  ExpectWrong(kProgramTrain, {"--config", config},
              {config, "unknown setting epoch; did you mean epochs?"});
  WriteConfig("epochs = none\n");
  ExpectWrong(kProgramTrain, {"--config", config}, {"epochs in " + config, "got 'none'"});
}

TEST_F(SettingsTest, HelpIsGroupedAndHidesWhatIsInternal) {
  ASSERT_FALSE(Parse(kProgramCoordinator, {"--epochs", "wrong", "--help"}));
  EXPECT_EQ(exit_.code, 0);
  EXPECT_THAT(exit_.text, HasSubstr("What is trained:\n  --epochs N"));
  EXPECT_THAT(exit_.text, HasSubstr("(default: 6)"));
  EXPECT_THAT(exit_.text, HasSubstr("Who takes part:\n"));
  EXPECT_THAT(exit_.text, Not(HasSubstr("ready-fd")));
  EXPECT_THAT(exit_.text, Not(HasSubstr("--dry-run")));
}

TEST_F(SettingsTest, VersionIsPrinted) {
  ASSERT_FALSE(Parse(kProgramWorker, {"--version"}));
  EXPECT_EQ(exit_.code, 0);
  EXPECT_EQ(exit_.text, "prog " + ProgramVersion() + "\n");
}

TEST_F(SettingsTest, QuietAndVerbose) {
  ASSERT_TRUE(Parse(kProgramTrain, {"-q"}));
  EXPECT_EQ(settings_.verbosity, -1);
  ASSERT_TRUE(Parse(kProgramTrain, {"--verbosity=-1"}));
  EXPECT_EQ(settings_.verbosity, -1);
}

TEST_F(SettingsTest, PositionalOfEvaluate) {
  ASSERT_TRUE(Parse(kProgramEvaluate, {"w.safetensors", "--backend", "cpu"})) << exit_.text;
  EXPECT_EQ(settings_.weights, "w.safetensors");
  ExpectWrong(kProgramEvaluate, {"a", "b"}, {"unexpected argument 'b'"});
}

// Every option of every program must survive ToFlags and back.
TEST_F(SettingsTest, ToFlagsRoundTripsEveryOption) {
  Settings changed;
  changed.epochs = 2;
  changed.global_batch = 7;
  changed.layers = {4, 3};
  changed.optimizer.kind = OptimizerSpec::Kind::kSgd;
  changed.optimizer.learning_rate = 0.3f;
  changed.seed = 9;
  changed.data_dir = "d d";
  changed.run_dir = "r";
  changed.name = "n";
  changed.report = "p";
  changed.weights = "w";
  changed.nodes = {2, std::numeric_limits<int>::max()};
  changed.workers = {2, 5};
  changed.listen = "0.0.0.0:0";
  changed.coordinator = "h:1";
  changed.join_timeout = absl::Seconds(2.5);
  changed.reproducible = true;
  changed.checkpoint_every = {0, absl::Seconds(2.5)};
  changed.resume = "never";
  changed.patience = absl::Seconds(1.5);
  changed.max_failures = 4;
  changed.chaos = "kill:1";
  changed.processes = "3";
  changed.backend = BackendChoice::kCuda;
  changed.threads = 2;
  changed.cuda_libs = "c";
  changed.dry_run = true;
  changed.verbosity = -1;
  changed.progress = "none";
  changed.ready_fd = 5;
  changed.data_fd = 6;
  changed.note_fd = 7;
  changed.vault_fd = 9;
  changed.local_rank = 1;
  changed.local_world_size = 2;
  changed.node_id = "id";
  for (const Program program : {kProgramTrain, kProgramCoordinator, kProgramWorker,
                                kProgramEvaluate, kProgramProcess, kProgramStatus, kProgramChaos}) {
    ASSERT_TRUE(Parse(program, ToFlags(program, changed))) << exit_.text;
    for (const SettingOption& option : SettingOptions()) {
      if ((option.programs & program) == 0) continue;
      EXPECT_EQ(option.format(settings_), option.format(changed)) << option.name;
      EXPECT_NE(option.format(changed), option.format(Settings{})) << option.name << " is untested";
    }
  }
  EXPECT_THAT(ToFlags(kProgramTrain, Settings{}), IsEmpty());
}

TEST_F(SettingsTest, LearningRateThatIsAdamsDefaultIsPassedOnForSgd) {
  Settings sgd;
  sgd.optimizer.kind = OptimizerSpec::Kind::kSgd;
  sgd.optimizer.learning_rate = 1e-3f;
  EXPECT_THAT(ToFlags(kProgramTrain, sgd), Contains("--learning-rate=0.001"));
}

TEST(CountRange, Forms) {
  EXPECT_EQ(*ParseCountRange("3"), (CountRange{3, 3}));
  EXPECT_EQ(*ParseCountRange("2:5"), (CountRange{2, 5}));
  EXPECT_EQ(*ParseCountRange("2:"), (CountRange{2, std::numeric_limits<int>::max()}));
  for (const char* wrong : {"", "0", "-1", "5:2", ":3", "a", "1:b", "1:2:3", "99999999999"}) {
    EXPECT_EQ(ParseCountRange(wrong).status().code(), absl::StatusCode::kInvalidArgument) << wrong;
  }
}

TEST(ClosestMatch, FindsTyposOnly) {
  EXPECT_EQ(ClosestMatch("trian", {"train", "status"}), "train");
  EXPECT_EQ(ClosestMatch("statsu", {"train", "status"}), "status");
  EXPECT_EQ(ClosestMatch("xyzzy", {"train", "status"}), "");
}

TEST(SettingsEnvironment, NamesEveryVisibleOption) {
  EXPECT_THAT(SettingsEnvironment(), Contains("RINGMASTER_GLOBAL_BATCH"));
  EXPECT_THAT(SettingsEnvironment(), Contains("RINGMASTER_CONFIG"));
  EXPECT_THAT(SettingsEnvironment(), Not(Contains("RINGMASTER_READY_FD")));
}

TEST(FindDataDirectory, FindsTheTreesOwn) {
  const auto found = FindDataDirectory(Settings{});
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_TRUE(std::filesystem::exists(*found + "/train-images-idx3-ubyte.gz")) << *found;
  Settings given;
  given.data_dir = "elsewhere";
  EXPECT_EQ(*FindDataDirectory(given), "elsewhere");
}

}  // namespace
}  // namespace ringmaster
