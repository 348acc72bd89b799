#include "tests/integration/run_fixture.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/dataset.h"
#include "common/settings.h"

namespace ringmaster {
namespace {

namespace fs = std::filesystem;

std::string ReadWhole(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void Drain(int fd, std::string* text) {
  char buffer[1 << 14];
  ssize_t count = 0;
  while ((count = read(fd, buffer, sizeof buffer)) > 0) {
    text->append(buffer, static_cast<size_t>(count));
  }
}

std::string BigEndian(uint32_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift & 255);
  return bytes;
}

// The argument after `flag`= in any of the processes' command lines.
std::string FlagOf(const std::vector<RunningProcess>& processes, const std::string& flag) {
  for (const RunningProcess& process : processes) {
    const size_t at = process.command_line.find(flag + "=");
    if (at == std::string::npos) continue;
    const size_t begin = at + flag.size() + 1;
    return process.command_line.substr(begin, process.command_line.find(' ', begin) - begin);
  }
  return "";
}

}  // namespace

std::vector<RunningProcess> ProcessesIn(const std::string& directory) {
  std::vector<RunningProcess> found;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    int pid = 0;
    if (!absl::SimpleAtoi(entry.path().filename().string(), &pid)) continue;
    std::error_code error;
    if (fs::read_symlink(entry.path() / "cwd", error) != directory || error) continue;
    std::string line = ReadWhole(entry.path() / "cmdline");
    std::replace(line.begin(), line.end(), '\0', ' ');
    if (!line.empty()) found.push_back({pid, line});
  }
  return found;
}

Running::Running(Child child, std::string directory)
    : child_(std::move(child)), directory_(std::move(directory)) {}

void Running::Collect() {
  Drain(child_.stdout_fd(), &out_);
  Drain(child_.stderr_fd(), &error_);
}

ExitStatus Running::Wait(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!child_.Poll()) {
    if (absl::Now() > deadline) {
      ADD_FAILURE() << "still running after " << timeout << "\n" << out_ << error_;
      child_.Signal(SIGKILL);
      return child_.Wait();
    }
    WaitReadable({child_.pidfd(), child_.stdout_fd(), child_.stderr_fd()}, absl::Milliseconds(50));
    Collect();
  }
  Collect();
  return child_.Wait();
}

void RunTest::SetUp() {
  std::string pattern = ::testing::TempDir() + "/ringmaster-XXXXXX";
  ASSERT_NE(mkdtemp(pattern.data()), nullptr);
  directory_ = fs::canonical(pattern).string();
}

void RunTest::TearDown() {
  for (const RunningProcess& process : Leftovers()) {
    ADD_FAILURE() << "left behind: " << process.pid << " " << process.command_line;
    kill(process.pid, SIGKILL);
  }
  fs::remove_all(directory_);
}

bool RunTest::Exists(const std::string& name) const { return fs::exists(Path(name)); }

void RunTest::WriteFile(const std::string& name, const std::string& bytes) const {
  fs::create_directories(fs::path(Path(name)).parent_path());
  fs::remove(Path(name));
  std::ofstream(Path(name), std::ios::binary) << bytes;
}

std::string RunTest::ReadFile(const std::string& name) const { return ReadWhole(Path(name)); }

nlohmann::json RunTest::ReadJson(const std::string& name) const {
  const auto json = nlohmann::json::parse(ReadFile(name), nullptr, false);
  EXPECT_TRUE(json.is_object()) << name << ": " << ReadFile(name);
  return json.is_object() ? json : nlohmann::json::object();
}

void RunTest::WriteSmallDataset(const std::string& name, uint32_t train, uint32_t test,
                                uint32_t size, uint32_t classes) const {
  const uint32_t counts[] = {train, test};
  for (int split = 0; split < 2; ++split) {
    std::string images = std::string("\0\0\x08\x03", 4) + BigEndian(counts[split]) +
                         BigEndian(size) + BigEndian(size);
    std::string labels = std::string("\0\0\x08\x01", 4) + BigEndian(counts[split]);
    for (uint32_t i = 0; i < counts[split]; ++i) {
      const uint32_t label = i % classes;
      labels += static_cast<char>(label);
      // Each class has rows of its own that are bright.
      for (uint32_t pixel = 0; pixel < size * size; ++pixel) {
        const bool bright = pixel / size % classes == label;
        images += static_cast<char>(bright ? 200 + (i * 31 + pixel) % 50 : (i * 7 + pixel) % 40);
      }
    }
    WriteFile(name + "/" + kDatasetFileNames[2 * split], images);
    WriteFile(name + "/" + kDatasetFileNames[2 * split + 1], labels);
  }
}

void RunTest::LinkMnist(const std::string& name) const {
  const auto data = FindDataDirectory(Settings{});
  ASSERT_TRUE(data.ok()) << data.status();
  fs::create_directories(Path(name));
  for (const auto& file : fs::directory_iterator(*data)) {
    fs::create_symlink(file.path(), Path(name) + "/" + file.path().filename().string());
  }
}

Running RunTest::Start(const std::string& program, const std::vector<std::string>& args,
                       const Environment& environment, const std::vector<std::string>& wrapper) {
  ChildOptions options;
  options.argv = wrapper;
  options.argv.push_back(std::string(RINGMASTER_PROGRAMS) + "/" + program);
  options.argv.insert(options.argv.end(), args.begin(), args.end());
  options.unset_environment = SettingsEnvironment();
  options.set_environment = environment;
  options.pipe_stdout = true;
  options.pipe_stderr = true;
  options.working_directory = directory_;
  auto child = Child::Start(options);
  if (!child.ok()) {
    ADD_FAILURE() << child.status();
    std::abort();
  }
  return Running(*std::move(child), directory_);
}

Captured RunTest::Run(const std::string& program, const std::vector<std::string>& args,
                      const Environment& environment) {
  Running running = Start(program, args, environment);
  const ExitStatus status = running.Wait();
  return {status, running.out(), running.error()};
}

std::pair<Running, std::string> RunTest::StartTraining(const std::vector<std::string>& args,
                                                       const Environment& environment) {
  Running train = Start("ringmaster", args, environment);
  std::string address;
  const bool training = train.Until([this, &address] {
    address = FlagOf(ProcessesIn(directory_), "--coordinator");
    if (address.empty()) return false;
    const Captured status = Run("ringmaster", {"status", "--coordinator", address});
    return status.status.ok() && status.out.find("phase          training") != std::string::npos &&
           status.out.find("step 0\n") == std::string::npos;
  });
  EXPECT_TRUE(training) << train.out() << train.error();
  return {std::move(train), address};
}

std::vector<RunningProcess> RunTest::Leftovers() {
  const absl::Time deadline = absl::Now() + absl::Seconds(10);
  std::vector<RunningProcess> left = ProcessesIn(directory_);
  while (!left.empty() && absl::Now() < deadline) {
    WaitReadable({}, absl::Milliseconds(10));
    left = ProcessesIn(directory_);
  }
  return left;
}

}  // namespace ringmaster
