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
#include "coordinator/progress_text.h"
#include "coordinator/run.h"
#include "coordinator/run_config.h"
#include "coordinator/run_directory.h"
#include "coordinator/run_files.h"
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

RunOptions MakeRunOptions(const Settings& settings, const TrainingConfig& config) {
  RunOptions options;
  options.incarnation = RandomId();
  options.model = ModelOf(config);
  options.membership.nodes = settings.nodes;
  options.membership.workers = settings.workers;
  options.membership.join_timeout = settings.join_timeout;
  options.membership.version = ProgramVersion();
  options.membership.data_digest = config.data_digest();
  options.membership.max_failures = settings.max_failures;
  // One patience, and all else in proportion.
  options.membership.patience = settings.patience;
  options.membership.warm_up = 20 * settings.patience;
  options.membership.largest_gap = settings.patience / 3;
  options.heartbeat_interval = settings.patience / 6;
  options.communicator_timeout = 20 * settings.patience;
  options.checkpoint_every_steps = settings.checkpoint_every.steps;
  options.checkpoint_every_time = settings.checkpoint_every.time;
  return options;
}

// With what a coordinator before this one left behind.
absl::StatusOr<std::unique_ptr<RunOutputs>> OpenOutputs(const Settings& settings,
                                                        const std::string& run_dir,
                                                        const RunFiles& files, absl::Time now) {
  RunOutputs::Options options;
  options.run_dir = run_dir;
  options.report = settings.report;
  options.config = files.state.config();
  options.model = ModelOf(options.config);
  options.progress = DetectProgressOptions(settings.progress, stdout);
  options.resumed = files.state.coordinator_starts() > 0;
  RM_ASSIGN_OR_RETURN(auto outputs, RunOutputs::Create(std::move(options), now));
  // The logs may lack what came last, and want each epoch from its beginning.
  const Ledger& before = files.at_snapshot.ledger();
  uint64_t first = before.size() - before.size() % before.timeline().records_per_epoch();
  for (first = std::max(first, before.base()); first < before.size(); ++first) {
    outputs->Replay(before.At(first), now);
  }
  for (const JournalEntry& entry : files.since) {
    for (const GlobalRecord& record : entry.records().records()) outputs->Replay(record, now);
  }
  outputs->Rewind(files.state.ledger().History(), files.state.epoch_began());
  return outputs;
}

// Tells what a run that is over has come to.
int TellResult(const RunState& state, const std::string& run_dir) {
  RunReport report;
  FillReport(state, &report);
  report.outcome = RunOutcome::kSuccess;
  report.run_dir = run_dir;
  spdlog::info("the run in {} is finished", run_dir);
  std::fputs(ClosingLines(report).c_str(), stdout);
  return 0;
}

// Whoever started us waits for this line.
void TellReady(int fd, const std::string& address, const std::string& run_dir) {
  if (fd < 0) return;
  const std::string line = absl::StrCat(address, "\t", run_dir, "\n");
  if (write(fd, line.data(), line.size()) < 0) spdlog::debug("nobody waits for the address");
  close(fd);
}

absl::StatusOr<int> Coordinate(const Settings& settings) {
  RM_ASSIGN_OR_RETURN(StopSignals signals, StopSignals::Create());
  const std::string listen = settings.listen.empty() ? kDefaultListen : settings.listen;
  RM_RETURN_IF_ERROR(CheckOutputs(settings));
  RM_ASSIGN_OR_RETURN(const Data data, ReadData(settings));
  RM_RETURN_IF_ERROR(Server::CheckAddress(listen));
  const Clock clock;
  RM_ASSIGN_OR_RETURN(const std::string run_dir, MakeRunDirectory(settings, clock.Now()));
  RM_ASSIGN_OR_RETURN(RunFiles files,
                      OpenRunFiles(settings, data.config, ProgramVersion(), run_dir, clock.Now()));
  const auto& ended = files.state.ended();
  if (ended && ended->outcome() == RunEnded::SUCCESS) return TellResult(files.state, run_dir);
  RM_ASSIGN_OR_RETURN(auto outputs, OpenOutputs(settings, run_dir, files, clock.Now()));
  const bool resumed = files.state.coordinator_starts() > 0;
  if (resumed) {
    // The process before us may have died of a sync that failed: a new file settles what is
    // durable.
    absl::Status status = outputs->SyncLogs();
    if (status.ok()) status = files.journal->Rotate(files.state.Snapshot().SerializeAsString());
    if (!status.ok()) spdlog::warn("the journal stays as it is: {}", std::string(status.message()));
  }
  Run run(MakeRunOptions(settings, data.config), std::move(files.state), std::move(files.journal),
          std::move(files.stored), clock.Now());
  RM_ASSIGN_OR_RETURN(
      auto writer,
      MakeCheckpointWriter(run_dir, run.state(), [&run](uint64_t generation, uint64_t position) {
        return run.OnLineage(generation, position);
      }));
  run.Begin(std::move(outputs), std::move(writer));
  RM_ASSIGN_OR_RETURN(const auto server, Server::Start(listen, &run, data.files));
  spdlog::info("{} {} in {}, listening on {}", resumed ? "going on with run" : "run", run.run_id(),
               run_dir, server->public_address());
  TellReady(settings.ready_fd, server->address(), run_dir);
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
