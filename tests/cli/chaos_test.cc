// `ringmaster chaos` against a coordinator of the test's own and processes that only look like
// ours.

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/host_process.h"
#include "common/credentials.h"
#include "common/file.h"
#include "common/identity.h"
#include "gmock/gmock.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "proto/training.grpc.pb.h"
#include "tests/cli/fake_process.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);

class FakeCoordinator : public Training::Service {
 public:
  explicit FakeCoordinator(std::function<RunStatus()> status) : status_(std::move(status)) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", MakeServerCredentials("127.0.0.1:0"), &port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    address_ = absl::StrCat("127.0.0.1:", port);
  }
  ~FakeCoordinator() override { server_->Shutdown(); }

  const std::string& address() const { return address_; }
  int asked() const { return asked_; }

 private:
  grpc::Status GetStatus(grpc::ServerContext*, const GetStatusRequest*,
                         RunStatus* status) override {
    *status = status_();
    ++asked_;
    return grpc::Status::OK;
  }

  const std::function<RunStatus()> status_;
  std::atomic<int> asked_{0};
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

class ChaosTest : public ::testing::Test {
 protected:
  ChaosTest() : coordinator_process_(StartIdleAs(directory_, "ringmaster-coordinator")) {
    for (int i = 0; i < 3; ++i) workers_.push_back(StartIdleAs(directory_, "ringmaster-worker"));
    status_.set_phase(RunStatus::TRAINING);
    status_.set_generation(4);
    status_.set_coordinator_host(HostName());
    status_.set_coordinator_pid(coordinator_process_.pid());
    for (const Child& worker : workers_) AddMember(HostName(), worker.pid());
  }

  void AddMember(const std::string& host, int pid) {
    Member* member = status_.add_members();
    member->set_host(host);
    member->set_pid(pid);
  }

  Child Start(const FakeCoordinator& coordinator, const std::string& spec) {
    ChildOptions options;
    options.argv = {RINGMASTER_PROGRAM, "chaos", "--coordinator", coordinator.address(),
                    "--spec",           spec,    "--seed",        "2"};
    options.set_environment = {{"RINGMASTER_LOG", "text"}, {"NO_COLOR", "1"}};
    options.pipe_stderr = true;
    auto child = Child::Start(options);
    EXPECT_TRUE(child.ok()) << child.status();
    return *std::move(child);
  }

  // Runs it to its end; what it said is in said_.
  ExitStatus Run(const FakeCoordinator& coordinator, const std::string& spec) {
    Child chaos = Start(coordinator, spec);
    return Finish(&chaos);
  }

  ExitStatus Finish(Child* chaos) {
    const auto status = chaos->WaitFor(kPatience);
    char buffer[4096];
    ssize_t count;
    while ((count = read(chaos->stderr_fd(), buffer, sizeof buffer)) > 0) {
      said_.append(buffer, static_cast<size_t>(count));
    }
    EXPECT_TRUE(status) << "it did not end: " << said_;
    return status.value_or(ExitStatus{});
  }

  // How many workers were killed.
  int Killed() {
    int killed = 0;
    for (Child& worker : workers_) killed += worker.Poll() == ExitStatus{0, SIGKILL} ? 1 : 0;
    return killed;
  }

  // The state of the process as in proc(5): T is stopped.
  static char State(pid_t pid) {
    const std::string stat = ReadFile(absl::StrCat("/proc/", pid, "/stat")).value_or("");
    const size_t name_end = stat.rfind(") ");
    return name_end == std::string::npos ? '?' : stat[name_end + 2];
  }

  template <typename Done>
  static bool Until(Done done) {
    for (const absl::Time end = absl::Now() + kPatience; absl::Now() < end;) {
      if (done()) return true;
      WaitReadable({}, absl::Milliseconds(5));
    }
    return false;
  }

  const TemporaryDirectory directory_;
  Child coordinator_process_;
  std::vector<Child> workers_;
  RunStatus status_;
  std::string said_;
};

TEST_F(ChaosTest, KillsWorkersAndTellsWhich) {
  const FakeCoordinator coordinator([this] { return status_; });
  EXPECT_EQ(Run(coordinator, "kill:2,every:0.01"), (ExitStatus{0, 0})) << said_;
  EXPECT_EQ(Killed(), 2);
  EXPECT_FALSE(coordinator_process_.Poll());
  EXPECT_THAT(said_, HasSubstr("are always these:"));
  for (Child& worker : workers_) {
    const std::string pid = absl::StrCat("pid ", worker.pid(), ", generation 4");
    EXPECT_EQ(said_.find(pid) != std::string::npos, worker.Poll().has_value()) << said_;
  }
  EXPECT_THAT(said_, HasSubstr("2 of 2 actions done"));
}

TEST_F(ChaosTest, StopsAWorkerAndLetsItGoOn) {
  const FakeCoordinator coordinator([this] { return status_; });
  Child chaos = Start(coordinator, "hang:1,hang-for:0.3,every:0.01");
  const auto stopped = [this] {
    int count = 0;
    for (const Child& worker : workers_) count += State(worker.pid()) == 'T' ? 1 : 0;
    return count;
  };
  EXPECT_TRUE(Until([&] { return stopped() == 1; }));
  EXPECT_EQ(Finish(&chaos), (ExitStatus{0, 0})) << said_;
  EXPECT_EQ(stopped(), 0);
  EXPECT_EQ(Killed(), 0);
}

TEST_F(ChaosTest, LetsAStoppedWorkerGoOnWhenToldToStop) {
  const FakeCoordinator coordinator([this] { return status_; });
  Child chaos = Start(coordinator, "hang:2,hang-for:600,every:0.01");
  const auto stopped = [this] {
    for (const Child& worker : workers_) {
      if (State(worker.pid()) == 'T') return true;
    }
    return false;
  };
  EXPECT_TRUE(Until(stopped));
  chaos.Signal(SIGTERM);
  EXPECT_EQ(Finish(&chaos), (ExitStatus{143, 0})) << said_;
  EXPECT_FALSE(stopped());
  EXPECT_THAT(said_, HasSubstr("of 2 actions done: told to stop"));
}

TEST_F(ChaosTest, KillsTheCoordinator) {
  const FakeCoordinator coordinator([this] { return status_; });
  EXPECT_EQ(Run(coordinator, "kill-coordinator:1,every:0.01"), (ExitStatus{0, 0})) << said_;
  EXPECT_EQ(coordinator_process_.WaitFor(kPatience), (ExitStatus{0, SIGKILL}));
  EXPECT_EQ(Killed(), 0);
}

TEST_F(ChaosTest, KillsEverybodyAtOnce) {
  const FakeCoordinator coordinator([this] { return status_; });
  EXPECT_EQ(Run(coordinator, "kill-all:1,every:0.01"), (ExitStatus{0, 0})) << said_;
  EXPECT_EQ(coordinator_process_.WaitFor(kPatience), (ExitStatus{0, SIGKILL}));
  EXPECT_TRUE(Until([this] { return Killed() == 3; }));
}

TEST_F(ChaosTest, KillsTheSuccessorOfTheCoordinatorToo) {
  // A parent that starts a coordinator, a second when the first has ended, and ends with the
  // second.
  const std::string idle = directory_.File("ringmaster-coordinator");
  Child parent = StartAs(directory_, "parent", "/bin/sh",
                         {"-c", absl::StrCat(idle, " 600; ", idle, " 600; exit 7")});
  int first = 0;
  ASSERT_TRUE(Until([&] {
    const auto found = HostProcess::FindChild(parent.pid(), "ringmaster-coordinator");
    first = found ? found->pid() : 0;
    return first != 0;
  }));
  status_.set_coordinator_pid(first);
  const FakeCoordinator coordinator([this] { return status_; });
  EXPECT_EQ(Run(coordinator, "kill-replay:1,every:0.01"), (ExitStatus{0, 0})) << said_;
  EXPECT_EQ(parent.WaitFor(kPatience), (ExitStatus{7, 0})) << said_;
}

TEST_F(ChaosTest, WaitsForTheTraining) {
  std::atomic<bool> training{false};
  const FakeCoordinator coordinator([&] {
    RunStatus status = status_;
    if (!training) status.set_phase(RunStatus::WAITING);
    return status;
  });
  Child chaos = Start(coordinator, "kill:1,every:0.001");
  EXPECT_TRUE(Until([&] { return coordinator.asked() >= 3; }));
  EXPECT_EQ(Killed(), 0);
  training = true;
  EXPECT_EQ(Finish(&chaos), (ExitStatus{0, 0})) << said_;
  EXPECT_EQ(Killed(), 1);
}

TEST_F(ChaosTest, SaysThatTheRunWasOverBefore) {
  std::atomic<int> asked{0};
  const FakeCoordinator coordinator([&] {
    RunStatus status = status_;
    if (++asked > 1) status.set_phase(RunStatus::FINISHED);
    return status;
  });
  EXPECT_EQ(Run(coordinator, "kill:3,every:0.01"), (ExitStatus{3, 0})) << said_;
  EXPECT_EQ(Killed(), 1);
  EXPECT_THAT(said_, HasSubstr("1 of 3 actions done: the run is over"));
}

TEST_F(ChaosTest, TouchesOnlyWorkersOfThisHost) {
  Child bystander = StartIdleAs(directory_, "bystander");
  status_.clear_members();
  AddMember("another-host", workers_[0].pid());
  AddMember(HostName(), bystander.pid());
  AddMember(HostName(), workers_[1].pid());
  const FakeCoordinator coordinator([this] { return status_; });
  EXPECT_EQ(Run(coordinator, "kill:1,every:0.01"), (ExitStatus{0, 0})) << said_;
  EXPECT_FALSE(bystander.Poll());
  EXPECT_FALSE(workers_[0].Poll());
  EXPECT_TRUE(workers_[1].WaitFor(kPatience));
}

TEST_F(ChaosTest, RefusesAWrongSpec) {
  const FakeCoordinator coordinator([this] { return status_; });
  EXPECT_EQ(Run(coordinator, "kill:none"), (ExitStatus{2, 0}));
  EXPECT_THAT(said_, HasSubstr("--spec: kill wants how many"));
  EXPECT_EQ(coordinator.asked(), 0);
}

}  // namespace
}  // namespace ringmaster
