#include "coordinator/progress.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <optional>
#include <string>

#include "coordinator/progress_text.h"
#include "tests/coordinator/records.h"

namespace ringmaster {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

const absl::Time kStart = absl::FromUnixSeconds(1700000000);

// Of Keras's MNIST example.
EpochView Halfway() {
  EpochView view;
  view.epoch = 0;
  view.epochs = 6;
  view.steps_per_epoch = 469;
  view.summary.steps = 235;
  view.summary.samples = 235 * 128;
  view.summary.accuracy = 0.92514;
  view.summary.loss = 0.26019;
  view.elapsed = absl::Milliseconds(468);
  return view;
}

EpochView Done() {
  EpochView view = Halfway();
  view.summary.steps = 469;
  view.summary.seconds = 0.938;
  view.summary.evaluated = true;
  view.summary.val_accuracy = 0.9601;
  view.summary.val_loss = 0.0005;
  return view;
}

TEST(BarLineTest, WhileStepsAreMissing) {
  EXPECT_EQ(BarLine(Halfway(), {.width = 120, .utf8 = true}),
            "235/469 ━━━━━━━━━━────────── 0s 2ms/step - accuracy: 0.9251 - loss: 0.2602");
}

TEST(BarLineTest, WithoutUtf8) {
  EXPECT_EQ(BarLine(Halfway(), {.width = 120}),
            "235/469 ==========.......... 0s 2ms/step - accuracy: 0.9251 - loss: 0.2602");
}

TEST(BarLineTest, InColour) {
  EXPECT_EQ(BarLine(Halfway(), {.width = 120, .utf8 = true, .colour = true}),
            "\x1b[1m235/469\x1b[0m \x1b[32m━━━━━━━━━━\x1b[0m\x1b[37m━━━━━━━━━━\x1b[0m "
            "\x1b[1m0s\x1b[0m 2ms/step - accuracy: 0.9251 - loss: 0.2602");
}

TEST(BarLineTest, WhenTheEpochIsDone) {
  EXPECT_EQ(BarLine(Done(), {.width = 200, .utf8 = true}),
            "469/469 ━━━━━━━━━━━━━━━━━━━━ 1s 2ms/step - accuracy: 0.9251 - loss: 0.2602 - "
            "val_accuracy: 0.9601 - val_loss: 5.0000e-04");
}

// It stays on the screen, so it may take two lines of it.
TEST(BarLineTest, NothingIsLeftOutOfALineThatStays) {
  EXPECT_EQ(BarLine(Done(), {.width = 40, .utf8 = true}),
            BarLine(Done(), {.width = 200, .utf8 = true}));
}

TEST(BarLineTest, CountsAreAsWideForEveryStep) {
  EpochView view = Halfway();
  view.summary.steps = 7;
  EXPECT_THAT(BarLine(view, {}), ::testing::StartsWith("  7/469 "));
}

TEST(BarLineTest, NoTimeIsKnownAfterOneStep) {
  EpochView view = Halfway();
  view.summary.steps = 1;
  EXPECT_EQ(BarLine(view, {.width = 120}),
            "  1/469 .................... - accuracy: 0.9251 - loss: 0.2602");
}

TEST(BarLineTest, TimeLeft) {
  EpochView view = Halfway();
  view.elapsed = absl::Seconds(234);
  EXPECT_THAT(BarLine(view, {.width = 120}), HasSubstr(" 3:54 1s/step - "));
  view.elapsed = absl::Hours(13);  // 200 s a step
  EXPECT_THAT(BarLine(view, {.width = 120}), HasSubstr(" 13:00:00 200s/step - "));
  view.elapsed = absl::Microseconds(234 * 450);
  EXPECT_THAT(BarLine(view, {.width = 120}), HasSubstr(" 0s 450us/step - "));
}

// The bar shrinks, then figures go; the cursor never reaches the last column.
TEST(BarLineTest, NarrowTerminals) {
  EXPECT_EQ(BarLine(Halfway(), {.width = 70}),
            "235/469 =======........ 0s 2ms/step - accuracy: 0.9251 - loss: 0.2602");
  EXPECT_EQ(BarLine(Halfway(), {.width = 50}), "235/469 =====..... 0s 2ms/step - accuracy: 0.9251");
  EXPECT_EQ(BarLine(Halfway(), {.width = 30}), "235/469 ====..... 0s 2ms/step");
  EXPECT_EQ(BarLine(Halfway(), {.width = 10}), "235/469");
  EXPECT_EQ(BarLine(Halfway(), {.width = 4}), "235");
  EXPECT_EQ(BarLine(Halfway(), {.width = 0}), "");
  for (int width = 1; width < 150; ++width) {
    EXPECT_LT(DisplayWidth(BarLine(Halfway(), {width, true, true})), width);
  }
}

TEST(EpochLineTest, OneLineAnEpoch) {
  EXPECT_EQ(EpochLine(Done()),
            "Epoch 1/6 - 469/469 - 0.94s - 2ms/step - accuracy: 0.9251 - loss: 0.2602 - "
            "val_accuracy: 0.9601 - val_loss: 5.0000e-04");
}

TEST(WithCommasTest, Groups) {
  EXPECT_EQ(WithCommas(0), "0");
  EXPECT_EQ(WithCommas(999), "999");
  EXPECT_EQ(WithCommas(1000), "1,000");
  EXPECT_EQ(WithCommas(360000), "360,000");
  EXPECT_EQ(WithCommas(18446744073709551615u), "18,446,744,073,709,551,615");
}

TEST(DisplayWidthTest, EscapesTakeNoRoom) {
  EXPECT_EQ(DisplayWidth("abc"), 3);
  EXPECT_EQ(DisplayWidth("\x1b[32m━━\x1b[0m"), 2);
}

RunReport Success() {
  RunReport report;
  report.outcome = RunOutcome::kSuccess;
  report.run_dir = "runs/20261123-201500-mnist";
  report.world_size = 2;
  report.device = CPU;
  report.history.Add(TrainingStep(0, 0, {.samples = 360000, .epoch_seconds = 1.5}));
  report.history.Add(Evaluation(0, {.loss_sum = 850, .correct = 9747, .samples = 10000}));
  report.samples_committed = report.samples_expected = 360000;
  return report;
}

TEST(ClosingLinesTest, OfASuccess) {
  EXPECT_EQ(ClosingLines(Success()),
            "360,000 of 360,000 samples, each exactly once\n"
            "Test accuracy: 97.47%, loss: 0.0850\n"
            "Speed: 240,000 samples/s, 1.50s of training with 2 processes (cpu)\n"
            "Results: runs/20261123-201500-mnist\n"
            "Curves: tensorboard --logdir runs/20261123-201500-mnist/tensorboard\n");
}

TEST(ClosingLinesTest, OfAFailure) {
  RunReport report = Success();
  report.outcome = RunOutcome::kFailed;
  report.samples_committed = 59999;
  EXPECT_EQ(ClosingLines(report), "59,999 of 360,000 samples\n");
  report.samples_committed = 0;
  EXPECT_EQ(ClosingLines(report), "");
}

TEST(ClosingLinesTest, TheCommandCanBePasted) {
  RunReport report = Success();
  report.run_dir = "my runs/it's";
  EXPECT_THAT(ClosingLines(report),
              EndsWith("tensorboard --logdir 'my runs/it'\\''s/tensorboard'\n"));
}

TEST(ProgressStyleTest, WhatTheSettingMeans) {
  EXPECT_EQ(ResolveProgressStyle("auto", true), ProgressStyle::kBar);
  EXPECT_EQ(ResolveProgressStyle("auto", false), ProgressStyle::kLines);
  EXPECT_EQ(ResolveProgressStyle("bar", false), ProgressStyle::kBar);
  EXPECT_EQ(ResolveProgressStyle("lines", true), ProgressStyle::kLines);
  EXPECT_EQ(ResolveProgressStyle("none", true), ProgressStyle::kNone);
}

class ProgressTest : public ::testing::Test {
 protected:
  ProgressTest() : out_(open_memstream(&text_, &size_)) {}
  ~ProgressTest() override {
    fclose(out_);
    free(text_);
  }

  // Two samples a step.
  void Start(ProgressStyle style, uint32_t samples = 3) {
    ProgressOptions options;
    options.style = style;
    options.terminal.width = 120;
    TrainingConfig config = SmallConfig();
    config.set_num_train_samples(samples);
    progress_.emplace(options, config, out_);
  }
  // One epoch of two steps, 100 ms apart.
  void RunEpoch(uint32_t epoch) {
    const absl::Time start = kStart + epoch * absl::Seconds(1);
    progress_->Record(TrainingStep(epoch, 0, {.loss_sum = 1, .correct = 1, .samples = 2}), start);
    progress_->Record(
        TrainingStep(epoch, 1, {.loss_sum = 2, .correct = 1, .samples = 1, .epoch_seconds = 0.4}),
        start + absl::Milliseconds(100));
    progress_->Record(Evaluation(epoch, {.loss_sum = 2, .correct = 1, .samples = 4}),
                      start + absl::Milliseconds(200));
  }
  // What was written since the last call.
  std::string Out() {
    const std::string all(text_, size_);
    const std::string fresh = all.substr(seen_);
    seen_ = all.size();
    return fresh;
  }

  char* text_ = nullptr;
  size_t size_ = 0;
  size_t seen_ = 0;
  FILE* out_;
  std::optional<Progress> progress_;
};

TEST_F(ProgressTest, Bar) {
  Start(ProgressStyle::kBar);
  RunEpoch(0);
  EXPECT_EQ(Out(),
            "Epoch 1/2\n"
            "\r1/2 ==========.......... - accuracy: 0.5000 - loss: 0.5000"
            "\r2/2 ==================== 0s 200ms/step - accuracy: 0.6667 - loss: 1.0000"
            "\r2/2 ==================== 0s 200ms/step - accuracy: 0.6667 - loss: 1.0000 - "
            "val_accuracy: 0.2500 - val_loss: 0.5000\n");
  RunEpoch(1);
  EXPECT_THAT(Out(), ::testing::StartsWith("Epoch 2/2\n\r1/2 "));
}

TEST_F(ProgressTest, LinesOnlyWhenAnEpochIsDone) {
  Start(ProgressStyle::kLines);
  RunEpoch(0);
  EXPECT_EQ(Out(),
            "Epoch 1/2 - 2/2 - 0.40s - 200ms/step - accuracy: 0.6667 - loss: 1.0000 - "
            "val_accuracy: 0.2500 - val_loss: 0.5000\n");
  progress_->Record(TrainingStep(1, 0, {.samples = 2}), kStart);
  EXPECT_EQ(Out(), "");
}

TEST_F(ProgressTest, NoneStillShowsTheResult) {
  Start(ProgressStyle::kNone);
  RunEpoch(0);
  EXPECT_EQ(Out(), "");
  progress_->Finish(Success());
  EXPECT_EQ(Out(), ClosingLines(Success()));
}

TEST_F(ProgressTest, PaintsAtMostEveryInterval) {
  Start(ProgressStyle::kBar, 20);
  progress_->Record(TrainingStep(0, 0, {.samples = 2}), kStart);
  EXPECT_THAT(Out(), HasSubstr("\r 1/10 "));
  progress_->Record(TrainingStep(0, 1, {.samples = 2}), kStart + absl::Milliseconds(49));
  EXPECT_EQ(Out(), "");
  progress_->Record(TrainingStep(0, 2, {.samples = 2}), kStart + absl::Milliseconds(50));
  EXPECT_THAT(Out(), HasSubstr("\r 3/10 "));
}

// A shorter line must not leave the end of the longer one before it.
TEST_F(ProgressTest, WipesOutALongerLine) {
  Start(ProgressStyle::kBar, 6);
  progress_->Record(TrainingStep(0, 0, {.loss_sum = 1, .samples = 2}), kStart);
  Out();
  progress_->Record(TrainingStep(0, 1, {.loss_sum = 299999, .samples = 1}),
                    kStart + absl::Seconds(1));
  EXPECT_EQ(Out(), "\r2/3 =============....... 1s 1s/step - accuracy: 0.0000 - loss: 100000.0000");
  progress_->Record(TrainingStep(0, 2, {.samples = 299997}), kStart + absl::Seconds(2));
  EXPECT_EQ(Out(), "\r3/3 ==================== 2s 1s/step - accuracy: 0.0000 - loss: 1.0000     ");
}

TEST_F(ProgressTest, AFailureLeavesTheBarsLine) {
  Start(ProgressStyle::kBar);
  progress_->Record(TrainingStep(0, 0, {.loss_sum = 1, .samples = 2}), kStart);
  EXPECT_THAT(Out(), Not(EndsWith("\n")));
  RunReport report = Success();
  report.outcome = RunOutcome::kFailed;
  report.samples_committed = 2;
  progress_->Finish(report);
  EXPECT_EQ(Out(), "\n2 of 360,000 samples\n");
}

// A pseudo-terminal with a size of its own, and the environment around it.
class TerminalTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"LC_ALL", "LC_CTYPE", "NO_COLOR"}) unsetenv(name);
    setenv("LANG", "C.UTF-8", 1);
    setenv("TERM", "xterm", 1);
    controller_ = posix_openpt(O_RDWR | O_NOCTTY);
    if (controller_ < 0 || grantpt(controller_) != 0 || unlockpt(controller_) != 0) {
      GTEST_SKIP() << "this machine gives no pseudo-terminal";
    }
    terminal_ = fopen(ptsname(controller_), "r+");
    if (terminal_ == nullptr) GTEST_SKIP() << "this machine gives no pseudo-terminal";
    const winsize size = {24, 57, 0, 0};
    ASSERT_EQ(ioctl(controller_, TIOCSWINSZ, &size), 0);
  }
  void TearDown() override {
    if (terminal_ != nullptr) fclose(terminal_);
    if (controller_ >= 0) close(controller_);
  }
  ProgressOptions Detect(const std::string& setting = "auto") {
    return DetectProgressOptions(setting, terminal_);
  }

  int controller_ = -1;
  FILE* terminal_ = nullptr;
};

TEST_F(TerminalTest, ATerminal) {
  const ProgressOptions options = Detect();
  EXPECT_EQ(options.style, ProgressStyle::kBar);
  EXPECT_EQ(options.terminal.width, 57);
  EXPECT_TRUE(options.terminal.utf8);
  EXPECT_TRUE(options.terminal.colour);
}

TEST_F(TerminalTest, NoColor) {
  setenv("NO_COLOR", "1", 1);
  EXPECT_EQ(Detect().style, ProgressStyle::kBar);
  EXPECT_FALSE(Detect().terminal.colour);
  setenv("NO_COLOR", "", 1);  // empty counts as not set (no-color.org)
  EXPECT_TRUE(Detect().terminal.colour);
}

TEST_F(TerminalTest, Locale) {
  setenv("LANG", "C", 1);
  EXPECT_FALSE(Detect().terminal.utf8);
  setenv("LC_CTYPE", "de_AT.utf8", 1);
  EXPECT_TRUE(Detect().terminal.utf8);
  setenv("LC_ALL", "POSIX", 1);
  EXPECT_FALSE(Detect().terminal.utf8);
}

TEST_F(TerminalTest, DumbTerminal) {
  setenv("TERM", "dumb", 1);
  EXPECT_EQ(Detect().style, ProgressStyle::kLines);
  EXPECT_FALSE(Detect("bar").terminal.colour);
}

TEST_F(TerminalTest, APipeIsNoTerminal) {
  FILE* pipe = popen("cat >/dev/null", "w");
  ASSERT_NE(pipe, nullptr);
  const ProgressOptions options = DetectProgressOptions("auto", pipe);
  EXPECT_EQ(options.style, ProgressStyle::kLines);
  EXPECT_EQ(options.terminal.width, 80);
  EXPECT_FALSE(options.terminal.colour);
  pclose(pipe);
}

}  // namespace
}  // namespace ringmaster
