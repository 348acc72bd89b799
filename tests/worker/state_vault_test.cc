#include "worker/state_vault.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/subprocess.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

VaultedState Sample(uint64_t position, size_t parameters) {
  VaultedState vaulted;
  vaulted.generation = 4;
  vaulted.position = position;
  vaulted.state.step = position + 1;
  for (auto* part :
       {&vaulted.state.parameters, &vaulted.state.first_moment, &vaulted.state.second_moment}) {
    part->assign(parameters, static_cast<float>(position));
  }
  vaulted.state.second_moment.resize(parameters / 2);  // each part has a size of its own
  vaulted.records = absl::StrCat("records of ", position);
  return vaulted;
}

class StateVaultTest : public ::testing::Test {
 protected:
  // A vault as the agent makes it, and the same as its process opens it.
  void SetUp() override {
    auto made = StateVault::Create();
    ASSERT_TRUE(made.ok()) << made.status();
    agent_.emplace(*std::move(made));
    auto opened = StateVault::Open(agent_->fd());
    ASSERT_TRUE(opened.ok()) << opened.status();
    process_.emplace(*std::move(opened));
  }

  // Fails the test when it cannot be loaded.
  std::optional<VaultedState> Load() {
    auto loaded = agent_->Load();
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return loaded.ok() ? *std::move(loaded) : std::nullopt;
  }

  uint64_t Size() const {
    struct stat info;
    return fstat(agent_->fd(), &info) == 0 ? static_cast<uint64_t>(info.st_size) : 0;
  }

  std::optional<StateVault> agent_;
  std::optional<StateVault> process_;
};

TEST_F(StateVaultTest, NewVaultIsEmpty) { EXPECT_EQ(Load(), std::nullopt); }

TEST_F(StateVaultTest, LoadsTheLastSaved) {
  for (const size_t parameters : {1000, 7, 0, 100000}) {
    const VaultedState saved = Sample(parameters + 1, parameters);
    ASSERT_TRUE(process_->Save(saved).ok());
    EXPECT_EQ(Load(), saved);
    EXPECT_EQ(Load(), saved);  // loading takes nothing away
  }
}

TEST_F(StateVaultTest, NothingAfterClear) {
  ASSERT_TRUE(process_->Save(Sample(1, 100)).ok());
  process_->Clear();
  EXPECT_EQ(Load(), std::nullopt);
  ASSERT_TRUE(process_->Save(Sample(2, 10)).ok());
  EXPECT_EQ(Load(), Sample(2, 10));
}

TEST_F(StateVaultTest, EveryDamagedByteIsFound) {
  ASSERT_TRUE(process_->Save(Sample(1, 5)).ok());
  for (uint64_t offset = 0; offset < Size(); ++offset) {
    char byte = 0;
    ASSERT_EQ(pread(agent_->fd(), &byte, 1, static_cast<off_t>(offset)), 1);
    const char damaged = byte ^ 0x10;
    ASSERT_EQ(pwrite(agent_->fd(), &damaged, 1, static_cast<off_t>(offset)), 1);
    EXPECT_EQ(agent_->Load().status().code(), absl::StatusCode::kDataLoss) << "byte " << offset;
    ASSERT_EQ(pwrite(agent_->fd(), &byte, 1, static_cast<off_t>(offset)), 1);
  }
  EXPECT_EQ(Load(), Sample(1, 5));
}

TEST_F(StateVaultTest, EveryTruncationIsFoundAndSoIsWhatIsTooMuch) {
  ASSERT_TRUE(process_->Save(Sample(1, 5)).ok());
  const uint64_t size = Size();
  ASSERT_EQ(ftruncate(agent_->fd(), static_cast<off_t>(size + 1)), 0);
  EXPECT_EQ(agent_->Load().status().code(), absl::StatusCode::kDataLoss);
  for (uint64_t left = size - 1; left > 0; --left) {
    ASSERT_EQ(ftruncate(agent_->fd(), static_cast<off_t>(left)), 0);
    EXPECT_EQ(agent_->Load().status().code(), absl::StatusCode::kDataLoss) << left << " bytes";
  }
}

// Saves one state after the other for ever; writes a byte before each.
[[noreturn]] void KeepSaving(StateVault* vault, size_t parameters, int begun_fd) {
  for (uint64_t position = 0;; ++position) {
    const VaultedState next = Sample(position, parameters);
    if (write(begun_fd, "x", 1) != 1 || !vault->Save(next).ok()) _exit(1);
  }
}

// Killed at ever other moments of it, until both outcomes were seen often enough.
TEST_F(StateVaultTest, KilledWhileSavingLeavesAStateOrNothing) {
  constexpr size_t kParameters = 50000;
  constexpr int kEnough = 10;
  int states = 0;
  int nothing = 0;
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  for (int i = 0; std::min(states, nothing) < kEnough && absl::Now() < deadline; ++i) {
    auto begun = MakePipe();
    ASSERT_TRUE(begun.ok());
    const pid_t pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) KeepSaving(&*process_, kParameters, begun->write.get());
    char bytes[2];
    for (char& byte : bytes) ASSERT_EQ(read(begun->read.get(), &byte, 1), 1);
    const absl::Time moment = absl::Now() + absl::Microseconds(37 * (i % 50));
    while (absl::Now() < moment) continue;
    kill(pid, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    ASSERT_TRUE(WIFSIGNALED(status)) << "it could not save";
    const auto loaded = Load();
    if (loaded) {
      ++states;
      EXPECT_EQ(*loaded, Sample(loaded->position, kParameters));
    } else {
      ++nothing;
    }
  }
  EXPECT_GE(states, kEnough);
  EXPECT_GE(nothing, kEnough);
}

TEST_F(StateVaultTest, OtherDescriptorsAreRefused) {
  auto pipe = MakePipe();
  ASSERT_TRUE(pipe.ok());
  for (const int fd : {-1, pipe->read.get()}) {
    const absl::Status status = StateVault::Open(fd).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << fd;
    EXPECT_THAT(std::string(status.message()), HasSubstr("is not a vault"));
  }
}

}  // namespace
}  // namespace ringmaster
