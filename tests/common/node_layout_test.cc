#include "common/node_layout.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

NodeSurvey WithGpus(int count) {
  NodeSurvey survey;
  survey.cores = 8;
  for (int i = 0; i < count; ++i) survey.gpus.push_back("GPU " + std::to_string(i));
  if (count == 0) survey.why_no_gpu = "no driver";
  return survey;
}

struct Case {
  const char* processes;
  BackendChoice backend;
  int gpus;
  int wanted_processes;
  bool wanted_cuda;
  const char* reason;
};

class PlanNodeTest : public ::testing::TestWithParam<Case> {};

TEST_P(PlanNodeTest, Plans) {
  const Case& c = GetParam();
  const auto layout = PlanNode(c.processes, c.backend, WithGpus(c.gpus), /*cpu_default=*/2);
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->processes, c.wanted_processes);
  EXPECT_EQ(layout->cuda, c.wanted_cuda);
  EXPECT_THAT(layout->reason, HasSubstr(c.reason));
}

INSTANTIATE_TEST_SUITE_P(
    All, PlanNodeTest,
    ::testing::Values(Case{"auto", BackendChoice::kAuto, 4, 4, true, "one process per GPU (GPU 0)"},
                      Case{"auto", BackendChoice::kAuto, 0, 2, false, "no driver"},
                      Case{"auto", BackendChoice::kCpu, 4, 2, false, "the CPU was asked for"},
                      Case{"auto", BackendChoice::kCuda, 3, 3, true, "GPU"},
                      Case{"gpu", BackendChoice::kAuto, 2, 2, true, "GPU"},
                      Case{"cpu", BackendChoice::kAuto, 2, 2, false, "the CPU was asked for"},
                      Case{"3", BackendChoice::kAuto, 0, 3, false, "no driver"},
                      Case{"3", BackendChoice::kAuto, 4, 3, true, "GPU"},
                      Case{"3", BackendChoice::kAuto, 1, 3, false,
                           "3 processes were asked for, and there is only 1 GPU"},
                      Case{"3", BackendChoice::kCpu, 4, 3, false, "the CPU was asked for"},
                      Case{"1", BackendChoice::kCuda, 4, 1, true, "GPU"}));

void ExpectRefused(const char* processes, BackendChoice backend, int gpus, const char* reason) {
  const auto layout = PlanNode(processes, backend, WithGpus(gpus), 2);
  EXPECT_EQ(layout.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(layout.status().message()), HasSubstr(reason));
}

TEST(PlanNode, RefusesWhatTheNodeCannotDo) {
  ExpectRefused("auto", BackendChoice::kCuda, 0, "none can be used: no driver. Pass --backend cpu");
  ExpectRefused("gpu", BackendChoice::kAuto, 0, "no driver");
  ExpectRefused("3", BackendChoice::kCuda, 2, "there is only 2 GPUs");
  ExpectRefused("gpu", BackendChoice::kCpu, 2, "contradict");
  ExpectRefused("cpu", BackendChoice::kCuda, 2, "contradict");
}

TEST(NodeSurvey, SurvivesJson) {
  NodeSurvey survey = WithGpus(2);
  survey.cuda_versions = "CUDA \"13\"";
  const auto back = ParseNodeSurvey(ToJson(survey));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->cores, 8);
  EXPECT_EQ(back->gpus, survey.gpus);
  EXPECT_EQ(back->cuda_versions, survey.cuda_versions);
}

TEST(NodeSurvey, RefusesOtherText) {
  for (const char* text : {"", "[]", "{}", "{\"cores\":1}", "{\"cores\":\"x\",\"gpus\":[]}"}) {
    EXPECT_EQ(ParseNodeSurvey(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(ThreadsPerProcess, SharesTheCores) {
  EXPECT_EQ(ThreadsPerProcess(0, 8, 3), 2);
  EXPECT_EQ(ThreadsPerProcess(0, 2, 5), 1);
  EXPECT_EQ(ThreadsPerProcess(7, 8, 3), 7);
}

}  // namespace
}  // namespace ringmaster
