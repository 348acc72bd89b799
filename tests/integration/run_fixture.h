// Runs the built programs as a user does: in a directory of the test's own, with pipes for stdout
// and stderr.
//
// Thread safety: for one thread.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/subprocess.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace ringmaster {

// A process of a run, as /proc shows it.
struct RunningProcess {
  int pid = 0;
  std::string command_line;  // arguments joined by blanks
};

// All processes whose working directory is `directory`: each test has one of its own.
std::vector<RunningProcess> ProcessesIn(const std::string& directory);

// A program that is running, with its output so far.
class Running {
 public:
  Running(Child child, std::string directory);

  Child& child() { return child_; }
  // Reads what there is.
  void Collect();
  // Collects until the program ends, at most `timeout`. Fails the test if it does not.
  ExitStatus Wait(absl::Duration timeout = absl::Seconds(60));
  // Collects until `done` (tried every 20 ms) or the program ends or 60 s are over; returns done().
  template <typename Done>
  bool Until(Done done) {
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    while (!done()) {
      if (child_.Poll() || absl::Now() > deadline) return done();
      Collect();
      WaitReadable({child_.pidfd()}, absl::Milliseconds(20));
    }
    return true;
  }

  const std::string& out() const { return out_; }
  const std::string& error() const { return error_; }

 private:
  Child child_;
  const std::string directory_;
  std::string out_;
  std::string error_;
};

class RunTest : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  // The path of a file in the test's directory.
  std::string Path(const std::string& name) const { return directory_ + "/" + name; }
  const std::string& directory() const { return directory_; }
  bool Exists(const std::string& name) const;
  void WriteFile(const std::string& name, const std::string& bytes) const;
  // Empty if it cannot be read.
  std::string ReadFile(const std::string& name) const;
  nlohmann::json ReadJson(const std::string& name) const;

  // Four plain IDX files in directory `name`: images of `size` x `size`, `classes` classes.
  void WriteSmallDataset(const std::string& name, uint32_t train, uint32_t test, uint32_t size,
                         uint32_t classes) const;
  // A copy (by symbolic links) of the real data set.
  void LinkMnist(const std::string& name) const;

  using Environment = std::vector<std::pair<std::string, std::string>>;
  // Starts "ringmaster", "ringmaster-worker" or "ringmaster-coordinator".
  Running Start(const std::string& program, const std::vector<std::string>& args,
                const Environment& environment = {}, const std::vector<std::string>& wrapper = {});
  // Starts `ringmaster train` and waits until it trains; returns it and the coordinator's address.
  std::pair<Running, std::string> StartTraining(const std::vector<std::string>& args,
                                                const Environment& environment);
  // Runs to the end.
  Captured Run(const std::string& program, const std::vector<std::string>& args,
               const Environment& environment = {});
  // Waits until nobody of this test's directory is left. Returns who is, after 10 s.
  std::vector<RunningProcess> Leftovers();

 private:
  std::string directory_;
};

}  // namespace ringmaster
