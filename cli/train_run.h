// The processes of `ringmaster train`: a coordinator and an agent, each started again when it dies,
// and the chaos driver if one was asked for.
//
// One poll() loop, no thread. Thread safety: for one thread.
#pragma once

#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "cli/part.h"
#include "common/node_layout.h"
#include "common/settings.h"
#include "common/subprocess.h"

namespace ringmaster {

// What the coordinator writes to --ready-fd, when it listens: "HOST:PORT\tRUN_DIR\n".
struct ReadyLine {
  std::string address;
  std::string run_dir;

  // `line` without its end.
  static ReadyLine Parse(const std::string& line);
};

class TrainRun {
 public:
  // `settings.data_dir` is resolved; the agent is to start `layout.processes`.
  TrainRun(const Settings& settings, const NodeLayout& layout, StopSignals signals)
      : settings_(settings), layout_(layout), signals_(std::move(signals)) {}

  // Runs to the end of the run. Returns the exit code: 0 it ended well (the coordinator says so),
  // 1 failure, 2 wrong configuration, 128 + n when signal n stopped it. Codes: those of starting a
  // program; DEADLINE_EXCEEDED: the coordinator did not get ready. No process is left behind.
  absl::StatusOr<int> Run();

 private:
  Settings CoordinatorSettings() const;
  absl::Status StartCoordinator();
  absl::Status StartAgent();
  absl::Status StartChaos();

  absl::Status ReadReady();
  absl::Status OnReady(const ReadyLine& ready);
  absl::Status TakeEnds();
  absl::Status OnCoordinatorEnd(const ExitStatus& end);
  absl::Status OnAgentEnd(const ExitStatus& end);
  void OnChaosEnd(const ExitStatus& end);
  void HandleSignals();
  void Press();
  void Wait();
  int ExitCode() const;
  // For people: how to go on with a run that was stopped.
  void SayHowToGoOn(int exit_code) const;

  const Settings settings_;
  const NodeLayout layout_;
  StopSignals signals_;
  UniqueFd ready_pipe_;
  std::string ready_text_;
  absl::Time ready_deadline_ = absl::InfiniteFuture();
  ReadyLine ready_;  // the last one; empty before the first
  Part coordinator_{"coordinator"};
  Part agent_{"agent"};
  Part chaos_{"chaos driver"};
  int stop_signal_ = 0;
  bool ending_ = false;  // nothing is started again
};

}  // namespace ringmaster
