// The loader of libringmaster_cuda.so, with modules made for the test: absent, damaged, of another
// version, missing a library; and the real one, where it was built.

#include "worker/cuda_loader.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/temporary_directory.h"

namespace ringmaster {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;

// The modules built for this test: kModules/<kind>/libringmaster_cuda.so.
constexpr char kModules[] = RINGMASTER_FAKE_MODULES;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

class CudaLoaderTest : public testing::Test {
 protected:
  void WriteModule(const std::string& bytes) {
    std::ofstream(directory_.File("libringmaster_cuda.so"), std::ios::binary) << bytes;
  }

  const TemporaryDirectory directory_;
};

TEST_F(CudaLoaderTest, AnAbsentModuleIsNotFound) {
  const auto module = LoadCudaModuleFrom({directory_.path()});
  EXPECT_EQ(module.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(module.status()), HasSubstr("there is no libringmaster_cuda.so"));
}

TEST_F(CudaLoaderTest, ADamagedModuleIsUnavailableWithTheLinkersReason) {
  WriteModule("not a library");
  const auto tiny = LoadCudaModuleFrom({directory_.path()});
  EXPECT_EQ(tiny.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(tiny.status()),
              AllOf(HasSubstr(directory_.path()), HasSubstr("file too short")));

  WriteModule(std::string(10000, 'x'));
  const auto garbage = LoadCudaModuleFrom({directory_.path()});
  EXPECT_EQ(garbage.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(garbage.status()), HasSubstr("invalid ELF header"));
}

TEST_F(CudaLoaderTest, AMissingLibraryIsNamed) {
  const auto module = LoadCudaModuleFrom({absl::StrCat(kModules, "/missing_library")});
  EXPECT_EQ(module.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(module.status()), HasSubstr("libringmaster_absent.so: cannot open"));
}

TEST_F(CudaLoaderTest, AModuleOfAnotherVersionIsRefused) {
  const auto abi = LoadCudaModuleFrom({absl::StrCat(kModules, "/other_abi")});
  EXPECT_EQ(abi.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(abi.status()), HasSubstr(absl::StrCat("interface ", kCudaModuleAbi + 1,
                                                            ", wanted ", kCudaModuleAbi)));

  const auto symbol = LoadCudaModuleFrom({absl::StrCat(kModules, "/other_symbol")});
  EXPECT_EQ(symbol.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(symbol.status()), HasSubstr("has no ringmaster_cuda_module"));
}

TEST_F(CudaLoaderTest, TheFirstDirectoryWithAModuleDecides) {
  const auto module = LoadCudaModuleFrom(
      {directory_.path(), absl::StrCat(kModules, "/good"), absl::StrCat(kModules, "/other_abi")});
  ASSERT_EQ(module.status(), absl::OkStatus());
  EXPECT_EQ((*module)->abi, kCudaModuleAbi);
  EXPECT_EQ((*module)->versions(), "fake");
  EXPECT_EQ((*module)->devices().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(CudaLoaderTest, SearchesBesideTheProgramThenCudaLibsThenTheLinkersPaths) {
  const std::vector<std::string> path = CudaSearchPath("/first::/second");
  ASSERT_GE(path.size(), 5u);
  const std::string here = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  EXPECT_EQ(path[0], here);
  EXPECT_EQ(path[1], here + "/../lib");
  EXPECT_EQ(path[2], "/first");
  EXPECT_EQ(path[3], "/second");
  EXPECT_EQ(path[4], "");
}

TEST_F(CudaLoaderTest, SearchesTheToolkitAndPythonsPackages) {
  const std::string wheel = directory_.File("lib/python3.99/site-packages/nvidia/nccl/lib");
  std::filesystem::create_directories(wheel);
  setenv("VIRTUAL_ENV", directory_.path().c_str(), 1);
  setenv("CUDA_HOME", "/a/toolkit", 1);
  const std::vector<std::string> path = CudaSearchPath("");
  unsetenv("VIRTUAL_ENV");
  unsetenv("CUDA_HOME");
  EXPECT_THAT(path, Contains(wheel));
  EXPECT_LT(std::find(path.begin(), path.end(), "/a/toolkit/lib64"),
            std::find(path.begin(), path.end(), wheel));
}

// Where the tree was built with CUDA the real module must open, GPU or not: a machine without one
// is told so by devices(), in words that name the driver.
TEST_F(CudaLoaderTest, TheRealModuleOpensWithOrWithoutAGpu) {
  const auto module = LoadCudaModule("");
  if (absl::IsNotFound(module.status())) GTEST_SKIP() << module.status().message();
  ASSERT_EQ(module.status(), absl::OkStatus());
  EXPECT_THAT((*module)->versions(), AllOf(HasSubstr("CUDA"), HasSubstr("NCCL")));
  EXPECT_EQ(*LoadCudaModule(""), *module);
  const auto devices = (*module)->devices();
  if (devices.ok()) {
    EXPECT_FALSE(devices->empty());
  } else {
    EXPECT_EQ(devices.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(Message(devices.status()), HasSubstr("driver"));
  }
}

// What it checks before it needs a GPU.
TEST_F(CudaLoaderTest, TheRealModuleRefusesContradictoryRanks) {
  const auto module = LoadCudaModule("");
  if (absl::IsNotFound(module.status())) GTEST_SKIP() << module.status().message();
  ASSERT_EQ(module.status(), absl::OkStatus());
  NcclOptions options;
  options.unique_id = std::string(128, 'x');
  options.world_size = 2;
  options.rank = 2;
  options.stream = &options;  // never used
  EXPECT_EQ((*module)->create_nccl_communicator(options).status().code(),
            absl::StatusCode::kInvalidArgument);
  options.rank = 1;
  options.unique_id = "short";
  const auto communicator = (*module)->create_nccl_communicator(options);
  EXPECT_EQ(communicator.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(communicator.status()), HasSubstr("5 bytes, wanted 128"));
}

}  // namespace
}  // namespace ringmaster
