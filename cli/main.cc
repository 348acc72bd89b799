// ringmaster: the command line. Starts the other two programs, or talks to them.

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "cli/chaos.h"
#include "cli/chaos_plan.h"
#include "cli/status.h"
#include "cli/train.h"
#include "common/logging.h"
#include "common/settings.h"
#include "common/subprocess.h"

namespace {

using ringmaster::EarlyExit;
using ringmaster::Settings;

constexpr char kHelp[] = R"(usage: ringmaster COMMAND [OPTIONS]

Trains a small network on many GPUs (or CPU cores) and tells the truth about it.

Commands:
  train             train on this machine; with no option: MNIST, 6 epochs, one process per GPU
  evaluate WEIGHTS  loss, accuracy and confusion matrix of saved weights
  status            what a run is doing now
  chaos             break a running run on purpose, to see that it holds
  version           print the version
  help              print this; 'ringmaster COMMAND --help' lists a command's options

Examples:
  ringmaster train
  ringmaster train --workers 3 --epochs 2 --report report.json
  ringmaster train --data-dir fashion-mnist --layers 784,512,256,10 --optimizer sgd
  ringmaster train --dry-run
  ringmaster evaluate runs/latest/weights.safetensors
  ringmaster status --coordinator 127.0.0.1:29400
  ringmaster chaos --coordinator 127.0.0.1:29400 --spec kill:5,hang:1,every:2

On several machines: 'ringmaster-coordinator --nodes 2' on one of them, and on each
'ringmaster-worker --coordinator HOST:PORT'.
)";

int Fail(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  return 2;
}

// Parses `args` and sets up logging. Returns true to go on, false to end with *code.
bool Parse(ringmaster::Program program, const std::string& name,
           const std::vector<std::string>& args, Settings* settings, int* code) {
  EarlyExit early_exit;
  if (ringmaster::ParseSettings(program, name, args, settings, &early_exit)) {
    ringmaster::InitLogging("ringmaster", settings->verbosity);
    return true;
  }
  std::fputs(early_exit.text.c_str(), early_exit.code == 0 ? stdout : stderr);
  *code = early_exit.code;
  return false;
}

int Train(const std::vector<std::string>& args) {
  Settings settings;
  int code = 0;
  if (!Parse(ringmaster::kProgramTrain, "ringmaster train", args, &settings, &code)) return code;
  return ringmaster::RunTrain(settings);
}

int Status(const std::vector<std::string>& args) {
  Settings settings;
  int code = 0;
  if (!Parse(ringmaster::kProgramStatus, "ringmaster status", args, &settings, &code)) return code;
  if (settings.coordinator.empty()) {
    return Fail("ringmaster status: --coordinator HOST:PORT is needed: whom to ask\n");
  }
  return ringmaster::RunStatusCommand(settings);
}

int Chaos(const std::vector<std::string>& args) {
  Settings settings;
  int code = 0;
  if (!Parse(ringmaster::kProgramChaos, "ringmaster chaos", args, &settings, &code)) {
    if (code == 0) std::fputs(ringmaster::ChaosSpecHelp().c_str(), stdout);
    return code;
  }
  if (settings.coordinator.empty() || settings.chaos.empty()) {
    return Fail(
        "ringmaster chaos: --coordinator HOST:PORT and --spec SPEC are needed: whose run to break, "
        "and how\nTry 'ringmaster chaos --help'.\n");
  }
  return ringmaster::RunChaosCommand(settings);
}

// The worker computes it: this program has no arithmetic. Its options are checked here first, so
// that messages name the command that was typed.
int Evaluate(const std::vector<std::string>& args) {
  Settings settings;
  int code = 0;
  if (!Parse(ringmaster::kProgramEvaluate, "ringmaster evaluate", args, &settings, &code)) {
    return code;
  }
  const auto worker = ringmaster::ProgramBeside("ringmaster-worker");
  if (!worker.ok()) {
    ringmaster::LogError(worker.status());
    return 1;
  }
  std::vector<std::string> all = {*worker, "evaluate"};
  all.insert(all.end(), args.begin(), args.end());
  std::vector<char*> pointers;
  for (std::string& arg : all) pointers.push_back(arg.data());
  pointers.push_back(nullptr);
  execv(worker->c_str(), pointers.data());
  spdlog::error("cannot start {}", *worker);
  return 1;
}

int Version(const std::vector<std::string>&) {
  std::printf("ringmaster %s\n", ringmaster::ProgramVersion().c_str());
  return 0;
}

int Help(const std::vector<std::string>&) {
  std::fputs(kHelp, stdout);
  return 0;
}

struct Command {
  const char* name;
  int (*run)(const std::vector<std::string>& args);
};

constexpr Command kCommands[] = {{"train", Train}, {"evaluate", Evaluate}, {"status", Status},
                                 {"chaos", Chaos}, {"version", Version},   {"--version", Version},
                                 {"help", Help},   {"--help", Help},       {"-h", Help}};

}  // namespace

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  const std::vector<std::string> args(argv + 1, argv + argc);
  if (args.empty()) return Fail(kHelp);
  for (const Command& command : kCommands) {
    if (args[0] == command.name) return command.run({args.begin() + 1, args.end()});
  }
  const std::string closest = ringmaster::ClosestMatch(
      args[0], {"train", "evaluate", "status", "chaos", "version", "help"});
  return Fail("ringmaster: unknown command '" + args[0] + "'" +
              (closest.empty() ? "" : "; did you mean " + closest + "?") +
              "\nTry 'ringmaster --help'.\n");
}
