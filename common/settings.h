// Settings: every option of every program, in one table.
//
// `ringmaster train` takes all of them and hands each program its own; a flag therefore means the
// same everywhere. Resolved in the order flag > environment (RINGMASTER_EPOCHS for --epochs) >
// --config file (TOML as CLI11 reads it: `epochs = 3`) > default.
//
// Thread safety: plain values; parsing is for main().
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/model.h"

namespace ringmaster {

// Which programs take an option; a bit set.
enum Program : unsigned {
  kProgramTrain = 1,        // ringmaster train
  kProgramCoordinator = 2,  // ringmaster-coordinator
  kProgramWorker = 4,       // ringmaster-worker (the agent of a node)
  kProgramEvaluate = 8,     // ringmaster evaluate, ringmaster-worker evaluate
  kProgramProcess = 16,     // ringmaster-worker process, fetch and probe (started by the agent)
  kProgramStatus = 32,      // ringmaster status
  kProgramChaos = 64,       // ringmaster chaos
};

// "3" is 3:3, "2:5" is 2 to 5, "2:" is 2 to any number.
struct CountRange {
  int min = 0;  // 0: not given
  int max = 0;

  bool given() const { return min > 0; }
  friend bool operator==(const CountRange&, const CountRange&) = default;
};
absl::StatusOr<CountRange> ParseCountRange(const std::string& text);

enum class BackendChoice { kAuto, kCpu, kCuda };

// How often a checkpoint is taken besides the ends of epochs: "500" is every 500 steps, "30s" every
// 30 seconds.
struct CheckpointInterval {
  uint32_t steps = 0;  // 0: not by this measure
  absl::Duration time = absl::Seconds(30);

  friend bool operator==(const CheckpointInterval&, const CheckpointInterval&) = default;
};
absl::StatusOr<CheckpointInterval> ParseCheckpointInterval(const std::string& text);

struct Settings {
  // What is trained.                                                   flag
  uint32_t epochs = 6;          // --epochs
  uint32_t global_batch = 128;  // --global-batch
  std::vector<int> layers;      // hidden widths or all; see --layers // --layers 784,128,10
  OptimizerSpec optimizer;      // --optimizer adam|sgd, --learning-rate
  uint64_t seed = 1;            // --seed
  bool reproducible = false;    // --reproducible
  std::string data_dir;         // empty: data/mnist of this tree     // --data-dir

  // Where results go.
  std::string run_dir;         // empty: runs/<UTC time>-<name>      // --run-dir
  std::string name = "mnist";  // --name
  std::string report;          // JSON; empty: report.json in run_dir // --report
  std::string weights;         // evaluate: the safetensors file     // positional

  // Who takes part.
  CountRange nodes;         // default 1 unless workers is given  // --nodes MIN[:MAX]
  CountRange workers;       // processes                          // --workers N|MIN:MAX
  std::string listen;       // coordinator; "HOST:PORT", port 0 picks one // --listen
  std::string coordinator;  // worker; "HOST:PORT"                // --coordinator
  absl::Duration join_timeout = absl::Seconds(600);  // --join-timeout SECONDS

  // When something fails.
  CheckpointInterval checkpoint_every;  // --checkpoint-every STEPS|SECONDSs
  std::string resume = "auto";          // auto|never|checkpoint file // --resume
  // How long a member may be silent. Every other time of the failure detection is derived from it.
  absl::Duration patience = absl::Seconds(3);  // --patience SECONDS
  int max_failures = -1;  // -1: as many as there are progress between // --max-failures
  std::string chaos;      // what to break, as cli/chaos_plan.h says // --chaos SPEC; chaos: --spec

  // How a node computes.
  std::string processes = "auto";                // auto|gpu|cpu|N                  // --processes
  BackendChoice backend = BackendChoice::kAuto;  // --backend
  // One by default: at MNIST's size more threads wait for each other longer than they compute, and
  // several processes of a machine would starve each other.
  int threads = 1;        // CPU threads a process; 0: cores / processes // --threads
  std::string cuda_libs;  // directories with NVIDIA's libraries // --cuda-libs DIR[:DIR]

  // What people see.
  bool dry_run = false;           // --dry-run
  int verbosity = 0;              // -v, -q
  std::string progress = "auto";  // auto|bar|lines|none              // --progress

  // Between our own programs (hidden).
  int ready_fd = -1;         // coordinator writes "HOST:PORT\tRUN_DIR\n" here // --ready-fd
  int data_fd = -1;          // memfd with the data set (worker/data_file.h)   // --data-fd
  int note_fd = -1;          // memfd with the agent's notes (worker/process_notes.h) // --note-fd
  int vault_fd = -1;         // memfd for a successor (worker/state_vault.h) // --vault-fd
  int local_rank = 0;        // --local-rank
  int local_world_size = 1;  // --local-world-size
  std::string node_id;       // --node-id
};

// The outcome of parsing a command line that is not simply settings.
struct EarlyExit {
  int code = 0;      // 0 for --help and --version, 2 for wrong usage
  std::string text;  // to stdout when code is 0, to stderr otherwise
};

// Parses `args` (without the program name) for `program`. `name` is shown in usage. Environment and
// --config are read too. Returns true and fills `settings`, or returns false and fills
// `early_exit`.
bool ParseSettings(Program program, const std::string& name, const std::vector<std::string>& args,
                   Settings* settings, EarlyExit* early_exit);

// The flags that give `program` the same settings: what `train` starts its programs with. Only
// options of that program that differ from their default.
std::vector<std::string> ToFlags(Program program, const Settings& settings);

// The environment variables that ParseSettings reads. Whoever starts a program with ToFlags()
// removes them from its environment: otherwise a default left out of the flags would lose to them.
std::vector<std::string> SettingsEnvironment();

// Where the data set is: `settings.data_dir`, or data/mnist of the tree or share/ringmaster of the
// installation that this program lies in. NOT_FOUND, with the places searched, if there is none.
absl::StatusOr<std::string> FindDataDirectory(const Settings& settings);

// The candidate closest to `word` by edit distance, or empty if none is close. For "did you mean".
std::string ClosestMatch(const std::string& word, const std::vector<std::string>& candidates);

// The version of the tree this program was built from. All programs of a run must have the same.
std::string ProgramVersion();

}  // namespace ringmaster
