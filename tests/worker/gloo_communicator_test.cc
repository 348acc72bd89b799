// What GlooCommunicator does when something goes wrong: aborted from another thread, a peer killed
// or stopped (real processes), a peer that never comes.

#include "worker/gloo_communicator.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/subprocess.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/communicator_fixture.h"
#include "tests/worker/file_store.h"
#include "tests/worker/in_memory_store.h"

// Read by LeakSanitizer: Gloo forgets the address it looked up when it cannot bind to it.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:gloo::transport::tcp::CreateDeviceAttr";
}

namespace ringmaster {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

constexpr size_t kCount = 100000;

double MillisecondsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// The state letter of a process or thread, as proc(5) has it: S sleeping, T stopped.
char StateOf(const std::string& stat_file) {
  std::ifstream file(stat_file);
  const std::string line(std::istreambuf_iterator<char>(file), {});
  const size_t name_end = line.rfind(')');
  return name_end == std::string::npos ? '?' : line[name_end + 2];
}

void WaitForState(const std::string& stat_file, char state) {
  while (StateOf(stat_file) != state) std::this_thread::yield();
}

// An all-reduce in a thread of its own.
class RunningAllReduce {
 public:
  explicit RunningAllReduce(TestRank& rank)
      : thread_([this, &rank] {
          tid_ = static_cast<int>(syscall(SYS_gettid));
          status_ = rank.communicator().AllReduceSum(rank.data(kCount));
          ended_ = Clock::now();
        }) {}
  ~RunningAllReduce() { Join(); }

  // Returns when the thread has gone to sleep: nobody else has come to this all-reduce.
  void WaitUntilBlocked() const {
    while (tid_ == 0) std::this_thread::yield();
    WaitForState(absl::StrCat("/proc/self/task/", tid_.load(), "/stat"), 'S');
  }
  const absl::Status& Join() {
    if (thread_.joinable()) thread_.join();
    return status_;
  }
  Clock::time_point ended() const { return ended_; }

 private:
  std::atomic<int> tid_{0};
  absl::Status status_;
  Clock::time_point ended_;
  std::thread thread_;
};

World MustMakeGlooWorld(int world_size, absl::Duration timeout = absl::Seconds(60)) {
  auto world = MakeGlooWorld(world_size, timeout);
  EXPECT_EQ(world.status(), absl::OkStatus());
  return *std::move(world);
}

TEST(GlooCommunicatorAbort, EndsARunningAllReduceWithinTenMilliseconds) {
  for (const int world_size : {2, 3}) {
    std::vector<double> milliseconds;
    for (int repeat = 0; repeat < 11; ++repeat) {
      const World world = MustMakeGlooWorld(world_size);
      RunningAllReduce running(*world[0]);
      running.WaitUntilBlocked();
      const Clock::time_point start = Clock::now();
      world[0]->communicator().Abort();
      EXPECT_EQ(running.Join().code(), absl::StatusCode::kAborted);
      milliseconds.push_back(
          std::chrono::duration<double, std::milli>(running.ended() - start).count());
    }
    std::sort(milliseconds.begin(), milliseconds.end());
    EXPECT_LT(milliseconds[milliseconds.size() / 2], 10) << "world size " << world_size;
    EXPECT_LT(milliseconds.back(), 500) << "world size " << world_size;
  }
}

// Wherever the all-reduces are when the abort comes, each rank's loop ends, aborted or cut off.
TEST(GlooCommunicatorAbort, FromManyThreadsAtAnyMoment) {
  for (int repeat = 0; repeat < 10; ++repeat) {
    const World world = MustMakeGlooWorld(3);
    std::atomic<int> calls{0};
    std::thread aborter([&] {
      while (calls < 10 * repeat) std::this_thread::yield();
      for (int i = 0; i < 2; ++i) world[0]->communicator().Abort();
    });
    ForEachRank(3, [&](int rank) {
      TestRank& self = *world[rank];
      absl::Status status;
      while (status.ok()) {
        status = self.communicator().AllReduceSum(self.data(kCount));
        ++calls;
      }
      EXPECT_EQ(status.code(),
                rank == 0 ? absl::StatusCode::kAborted : absl::StatusCode::kUnavailable)
          << status;
    });
    aborter.join();
  }
}

TEST(GlooCommunicatorAbort, CutsThePeersOff) {
  const World world = MustMakeGlooWorld(2);
  RunningAllReduce running(*world[0]);
  running.WaitUntilBlocked();
  world[0]->communicator().Abort();
  EXPECT_EQ(running.Join().code(), absl::StatusCode::kAborted);
  const Clock::time_point start = Clock::now();
  EXPECT_EQ(world[1]->communicator().AllReduceSum(world[1]->data(kCount)).code(),
            absl::StatusCode::kUnavailable);
  EXPECT_LT(MillisecondsSince(start), 1000);
}

// Rank 0 here, the others as processes.
class ProcessWorld {
 public:
  ProcessWorld(int world_size, absl::Duration timeout, size_t count) : data_(count, 1.0f) {
    directory_ = (std::filesystem::temp_directory_path() / "communicator.XXXXXX").string();
    EXPECT_NE(mkdtemp(directory_.data()), nullptr);
    for (int rank = 1; rank < world_size; ++rank) {
      ChildOptions child;
      child.argv = {RINGMASTER_COMMUNICATOR_RANK, directory_, absl::StrCat(rank),
                    absl::StrCat(world_size), absl::StrCat(count)};
      child.pipe_stdout = true;
      auto started = Child::Start(child);
      EXPECT_EQ(started.status(), absl::OkStatus());
      children_.push_back(*std::move(started));
    }
    FileStore store(directory_);
    GlooCommunicator::Options options;
    options.world_size = world_size;
    options.store = &store;
    options.listen_address = "127.0.0.1";
    options.timeout = timeout;
    auto communicator = GlooCommunicator::Create(options);
    EXPECT_EQ(communicator.status(), absl::OkStatus());
    communicator_ = *std::move(communicator);
    EXPECT_EQ(AllReduce(), absl::OkStatus());  // now every rank is at work
  }
  ~ProcessWorld() { std::filesystem::remove_all(directory_); }

  absl::Status AllReduce() { return communicator_->AllReduceSum({data_.data(), data_.size()}); }
  absl::Status AllReduceUntilError() {
    absl::Status status;
    while (status.ok()) status = AllReduce();
    return status;
  }
  Child& process(int rank) { return children_[rank - 1]; }
  void StopProcess(int rank) {
    process(rank).Signal(SIGSTOP);
    WaitForState(absl::StrCat("/proc/", process(rank).pid(), "/stat"), 'T');
  }
  // What the process printed, once it has ended.
  std::string Verdict(int rank) {
    EXPECT_TRUE(process(rank).WaitFor(absl::Seconds(10)).has_value()) << "rank " << rank;
    char text[64] = {};
    const ssize_t length = read(process(rank).stdout_fd(), text, sizeof text);
    return std::string(text, std::max<ssize_t>(length, 0));
  }
  GlooCommunicator& communicator() { return *communicator_; }
  std::vector<float>& data() { return data_; }

 private:
  std::string directory_;
  std::vector<Child> children_;
  std::vector<float> data_;
  std::unique_ptr<GlooCommunicator> communicator_;
};

class GlooCommunicatorProcessTest : public testing::TestWithParam<int> {};

TEST_P(GlooCommunicatorProcessTest, KilledPeerEndsTheOthersWithinASecond) {
  const int world_size = GetParam();
  ProcessWorld world(world_size, absl::Seconds(60), kCount);
  std::atomic<int> calls{0};
  std::future<absl::Status> here = std::async(std::launch::async, [&] {
    absl::Status status;
    for (; status.ok(); ++calls) status = world.AllReduce();
    return status;
  });
  while (calls < 20) std::this_thread::yield();
  const Clock::time_point start = Clock::now();
  world.process(1).Signal(SIGKILL);
  const absl::Status status = here.get();
  EXPECT_LT(MillisecondsSince(start), 1000);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat("rank 0 of ", world_size, ": lost rank ")));
  // Neighbours and strangers alike.
  for (int rank = 2; rank < world_size; ++rank) EXPECT_EQ(world.Verdict(rank), "UNAVAILABLE\n");
  EXPECT_LT(MillisecondsSince(start), 1000);
  // And so it stays.
  EXPECT_EQ(world.AllReduce().code(), absl::StatusCode::kUnavailable);
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, GlooCommunicatorProcessTest, testing::Values(2, 3, 5));

TEST(GlooCommunicatorProcess, StoppedPeerIsWaitedForUntilAbort) {
  std::vector<double> milliseconds;
  for (int repeat = 0; repeat < 5; ++repeat) {
    ProcessWorld world(2, absl::Seconds(60), kCount);
    world.StopProcess(1);
    Clock::time_point ended;
    std::future<absl::Status> here = std::async(std::launch::async, [&] {
      const absl::Status status = world.AllReduceUntilError();
      ended = Clock::now();
      return status;
    });
    // At most one all-reduce was under way: the next waits for the stopped peer, and goes on doing
    // so.
    EXPECT_EQ(here.wait_for(std::chrono::milliseconds(200)), std::future_status::timeout);
    const Clock::time_point start = Clock::now();
    world.communicator().Abort();
    EXPECT_EQ(here.get().code(), absl::StatusCode::kAborted);
    milliseconds.push_back(std::chrono::duration<double, std::milli>(ended - start).count());
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  EXPECT_LT(milliseconds[milliseconds.size() / 2], 10);
  EXPECT_LT(milliseconds.back(), 500);
}

TEST(GlooCommunicatorProcess, StoppedPeerIsGivenUpAfterTheTimeout) {
  ProcessWorld world(2, absl::Milliseconds(300), kCount);
  world.StopProcess(1);
  const Clock::time_point start = Clock::now();
  const absl::Status status = world.AllReduceUntilError();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("did not answer within 300ms"));
  EXPECT_GE(MillisecondsSince(start), 300);
  EXPECT_LT(MillisecondsSince(start), 2000);
}

// A peer that goes on after it was given up must not write into memory that is the caller's again.
TEST(GlooCommunicatorProcess, NothingIsWrittenAfterAFailure) {
  ProcessWorld world(3, absl::Seconds(60), kCount);
  world.StopProcess(2);
  std::future<absl::Status> here =
      std::async(std::launch::async, [&] { return world.AllReduceUntilError(); });
  EXPECT_EQ(here.wait_for(std::chrono::milliseconds(200)), std::future_status::timeout);
  world.communicator().Abort();
  EXPECT_EQ(here.get().code(), absl::StatusCode::kAborted);
  world.data().assign(kCount, 42.0f);
  world.process(2).Signal(SIGCONT);
  EXPECT_EQ(world.Verdict(1), "UNAVAILABLE\n");
  EXPECT_EQ(world.Verdict(2), "UNAVAILABLE\n");
  EXPECT_EQ(world.data(), std::vector<float>(kCount, 42.0f));
}

GlooCommunicator::Options OptionsFor(int rank, int world_size, KeyValueStore* store) {
  GlooCommunicator::Options options;
  options.rank = rank;
  options.world_size = world_size;
  options.store = store;
  options.listen_address = "127.0.0.1";
  options.timeout = absl::Milliseconds(200);
  return options;
}

TEST(GlooCommunicatorCreate, WantsAPlaceInAWorldOfTwoOrMore) {
  InMemoryStore store;
  for (const auto& [rank, world_size] : {std::pair(0, 1), {-1, 2}, {2, 2}, {0, 0}}) {
    EXPECT_EQ(GlooCommunicator::Create(OptionsFor(rank, world_size, &store)).status().code(),
              absl::StatusCode::kInvalidArgument)
        << rank << " of " << world_size;
  }
}

TEST(GlooCommunicatorCreate, PeerThatNeverComes) {
  InMemoryStore store;
  const Clock::time_point start = Clock::now();
  const absl::Status status = GlooCommunicator::Create(OptionsFor(0, 3, &store)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0 of 3 waits for rank 1"));
  EXPECT_GE(MillisecondsSince(start), 200);
  EXPECT_LT(MillisecondsSince(start), 1000);
}

TEST(GlooCommunicatorCreate, PeerThatCameAndWent) {
  InMemoryStore store;
  EXPECT_EQ(GlooCommunicator::Create(OptionsFor(1, 2, &store)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  const Clock::time_point start = Clock::now();
  const absl::Status status = GlooCommunicator::Create(OptionsFor(0, 2, &store)).status();
  // The side with the higher port dials: it is refused. The other waits for a call.
  EXPECT_THAT(status.code(),
              AnyOf(absl::StatusCode::kUnavailable, absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0 of 2 cannot connect to rank 1"));
  EXPECT_LT(MillisecondsSince(start), 1000);
}

TEST(GlooCommunicatorCreate, EndOfTheGenerationWhileWaiting) {
  InMemoryStore store;
  store.End();
  EXPECT_EQ(GlooCommunicator::Create(OptionsFor(0, 2, &store)).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(GlooCommunicatorCreate, AddressOfAnotherHost) {
  InMemoryStore store;
  GlooCommunicator::Options options = OptionsFor(0, 2, &store);
  options.listen_address = "192.0.2.1";  // reserved for documentation: nobody has it
  const absl::Status status = GlooCommunicator::Create(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("192.0.2.1"));
}

TEST(GlooCommunicatorCreate, IgnoresSigpipeButKeepsAHandler) {
  InMemoryStore store;
  struct sigaction action = {};
  signal(SIGPIPE, SIG_DFL);
  GlooCommunicator::Create(OptionsFor(0, 2, &store)).IgnoreError();
  sigaction(SIGPIPE, nullptr, &action);
  EXPECT_EQ(action.sa_handler, SIG_IGN);

  const auto handler = [](int) {};
  signal(SIGPIPE, handler);
  GlooCommunicator::Create(OptionsFor(0, 2, &store)).IgnoreError();
  sigaction(SIGPIPE, nullptr, &action);
  EXPECT_EQ(action.sa_handler, static_cast<sighandler_t>(handler));
  signal(SIGPIPE, SIG_DFL);
}

}  // namespace
}  // namespace ringmaster
