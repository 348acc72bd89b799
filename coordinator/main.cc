// ringmaster-coordinator: leads one training run.

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/dataset.h"
#include "common/identity.h"
#include "common/logging.h"
#include "common/settings.h"
#include "common/status_macros.h"
#include "common/subprocess.h"
#include "coordinator/run.h"
#include "coordinator/run_config.h"
#include "coordinator/run_directory.h"
#include "coordinator/run_outputs.h"
#include "coordinator/server.h"

namespace ringmaster {
namespace {

constexpr char kDefaultListen[] = "0.0.0.0:29400";
constexpr absl::Duration kTick = absl::Milliseconds(100);

// Time of day at the start, steady from then on: it never goes back.
class Clock {
 public:
  absl::Time Now() const {
    return start_ + absl::FromChrono(std::chrono::steady_clock::now() - steady_start_);
  }

 private:
  const absl::Time start_ = absl::Now();
  const std::chrono::steady_clock::time_point steady_start_ = std::chrono::steady_clock::now();
};

struct Data {
  std::shared_ptr<const DatasetFiles> files;
  TrainingConfig config;
};

// The files stay; the images are needed only to know that they are good.
absl::StatusOr<Data> ReadData(const Settings& settings) {
  RM_ASSIGN_OR_RETURN(const std::string directory, FindDataDirectory(settings));
  RM_ASSIGN_OR_RETURN(DatasetFiles files, ReadDatasetFiles(directory));
  RM_ASSIGN_OR_RETURN(const Dataset dataset, DecodeDataset(files));
  Data data;
  RM_ASSIGN_OR_RETURN(data.config, MakeTrainingConfig(settings, dataset, DatasetDigest(files)));
  data.files = std::make_shared<const DatasetFiles>(std::move(files));
  return data;
}

RunOptions MakeRunOptions(const Settings& settings, const TrainingConfig& config, absl::Time now) {
  RunOptions options;
  options.incarnation = RandomId();
  options.run_id =
      absl::StrCat(absl::FormatTime("%Y%m%d-%H%M%S", now, absl::UTCTimeZone()), "-",
                   absl::Hex(static_cast<uint32_t>(options.incarnation), absl::kZeroPad8));
  options.config = config;
  options.model = ModelOf(config);
  options.membership.nodes = settings.nodes;
  options.membership.workers = settings.workers;
  options.membership.join_timeout = settings.join_timeout;
  options.membership.version = ProgramVersion();
  options.membership.data_digest = config.data_digest();
  return options;
}

absl::Status BeginRun(const Settings& settings, const TrainingConfig& config, Run* run,
                      absl::Time now) {
  RunOutputs::Options options;
  RM_ASSIGN_OR_RETURN(options.run_dir, MakeRunDirectory(settings, now));
  options.report = settings.report;
  options.config = config;
  options.model = ModelOf(config);
  options.progress = DetectProgressOptions(settings.progress, stdout);
  RM_ASSIGN_OR_RETURN(auto outputs, RunOutputs::Create(std::move(options), now));
  run->Begin(std::move(outputs));
  return absl::OkStatus();
}

// Whoever started us waits for this line.
void TellReady(int fd, const std::string& address) {
  if (fd < 0) return;
  const std::string line = address + "\n";
  if (write(fd, line.data(), line.size()) < 0) spdlog::debug("nobody waits for the address");
  close(fd);
}

absl::StatusOr<int> Coordinate(const Settings& settings) {
  RM_ASSIGN_OR_RETURN(StopSignals signals, StopSignals::Create());
  RM_RETURN_IF_ERROR(CheckOutputs(settings));
  RM_ASSIGN_OR_RETURN(const Data data, ReadData(settings));
  const Clock clock;
  Run run(MakeRunOptions(settings, data.config, clock.Now()), clock.Now());
  const std::string listen = settings.listen.empty() ? kDefaultListen : settings.listen;
  RM_ASSIGN_OR_RETURN(const auto server, Server::Start(listen, &run, data.files));
  RM_RETURN_IF_ERROR(BeginRun(settings, data.config, &run, clock.Now()));
  spdlog::info("run {} in {}, listening on {}", run.run_id(), run.status().run_dir(),
               server->public_address());
  TellReady(settings.ready_fd, server->address());
  for (;;) {
    if (const int signal = signals.Next(); signal != 0) run.Stop(signal);
    if (const auto exit_code = run.Advance(clock.Now())) return *exit_code;
    WaitReadable({run.wake_fd(), signals.fd()}, kTick);
  }
}

}  // namespace
}  // namespace ringmaster

int main(int argc, char** argv) {
  ringmaster::DieWithParent(SIGTERM);  // time to write the report
  signal(SIGPIPE, SIG_IGN);
  ringmaster::Settings settings;
  ringmaster::EarlyExit early_exit;
  if (!ringmaster::ParseSettings(ringmaster::kProgramCoordinator, "ringmaster-coordinator",
                                 {argv + 1, argv + argc}, &settings, &early_exit)) {
    std::fputs(early_exit.text.c_str(), early_exit.code == 0 ? stdout : stderr);
    return early_exit.code;
  }
  ringmaster::InitLogging("ringmaster-coordinator", settings.verbosity);
  const absl::StatusOr<int> code = ringmaster::Coordinate(settings);
  if (code.ok()) return *code;
  ringmaster::LogError(code.status());
  const bool wrong_input = absl::IsInvalidArgument(code.status()) ||
                           absl::IsNotFound(code.status()) || absl::IsDataLoss(code.status());
  return wrong_input ? 2 : 1;
}
