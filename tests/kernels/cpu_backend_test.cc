// What only the CPU backend has: its choice of the first layer, and threads.

#include "kernels/cpu/cpu_backend.h"

#include <algorithm>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/instruction_set.h"
#include "tests/kernels/backend_fixture.h"

namespace ringmaster {
namespace {

using testing::HasSubstr;

std::string Describe(const std::vector<int>& layers, int zero_percent) {
  DatasetShape shape{.rows = 8, .columns = 8, .classes = 4, .train = 50};
  shape.zero_percent = zero_percent;
  const Dataset dataset = MakeDataset(shape);
  const auto backend = CreateCpuBackend(MakeOptions(layers, dataset, 10), dataset);
  EXPECT_EQ(backend.status(), absl::OkStatus());
  return (*backend)->description();
}

TEST(CpuBackendTest, ItsFirstLayerIsSparseWhereThePixelsAre) {
  EXPECT_THAT(Describe({64, 32, 4}, 85), HasSubstr("sparse first layer"));
  EXPECT_THAT(Describe({64, 32, 4}, 10), HasSubstr("dense first layer"));
  // No vector divides this width.
  EXPECT_THAT(Describe({64, 30, 4}, 85), HasSubstr("dense first layer"));
}

TEST(CpuBackendTest, ItNamesItsInstructionSetAndLibrary) {
  const std::string description = Describe({64, 32, 4}, 85);
  EXPECT_THAT(description, HasSubstr(AvailableVectorKernels().front()->name));
  EXPECT_THAT(description, HasSubstr("oneDNN "));
}

TEST(CpuBackendTest, NoThreadsAreRefused) {
  const Dataset dataset = MakeDataset({.rows = 8, .columns = 8, .classes = 4, .train = 50});
  BackendOptions options = MakeOptions({64, 32, 4}, dataset, 10);
  options.threads = 0;
  EXPECT_EQ(CreateCpuBackend(options, dataset).status().code(), absl::StatusCode::kInvalidArgument);
}

// Threads share out the rows of a product, each of which is summed as before.
TEST(CpuBackendTest, ThreadsDoNotChangeTheResult) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "ThreadSanitizer does not see the barriers of libgomp";
#endif
  DatasetShape shape{.rows = 28, .columns = 28, .classes = 10, .train = 200};
  shape.zero_percent = 80;
  const Dataset dataset = MakeDataset(shape);
  for (const auto input : {CpuTuning::Input::kSparse, CpuTuning::Input::kDense}) {
    std::vector<std::vector<float>> gradients;
    for (const int threads : {1, 2, 3}) {
      BackendOptions options = MakeOptions({784, 64, 10}, dataset, 150);
      options.threads = threads;
      const auto backend = CreateTunedCpuBackend(options, dataset, {nullptr, input});
      ASSERT_EQ(backend.status(), absl::OkStatus());
      StepWork work;
      work.slice = {7, 150};
      ASSERT_EQ((*backend)->ComputeGradient(work), absl::OkStatus());
      gradients.push_back(ReadGradient(**backend, options.model));
    }
    for (size_t i = 0; i < gradients[0].size(); ++i) {
      ASSERT_NEAR(gradients[1][i], gradients[0][i], 1e-5) << i;
      ASSERT_NEAR(gradients[2][i], gradients[0][i], 1e-5) << i;
    }
    EXPECT_NE(*std::max_element(gradients[0].begin(), gradients[0].end()), 0);
  }
}

}  // namespace
}  // namespace ringmaster
