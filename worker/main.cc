// ringmaster-worker: the agent of a node, and what it starts.

#include <signal.h>

#include <cstdio>
#include <string>
#include <vector>

#include "common/logging.h"
#include "common/settings.h"
#include "common/subprocess.h"
#include "worker/agent.h"
#include "worker/device.h"
#include "worker/evaluate.h"
#include "worker/fetch.h"
#include "worker/process.h"

namespace {

using ringmaster::Settings;

int Probe(const Settings& settings) {
  std::puts(ringmaster::ToJson(ringmaster::SurveyNode(settings.cuda_libs)).c_str());
  return 0;
}

// A use of this program: no command is the agent, the others are `ringmaster-worker NAME`.
struct Command {
  const char* name;
  ringmaster::Program program;
  bool needs_coordinator;
  int (*run)(const Settings&);
};

constexpr Command kAgent = {"", ringmaster::kProgramWorker, true, ringmaster::RunAgent};
constexpr Command kCommands[] = {
    {"process", ringmaster::kProgramProcess, true, ringmaster::RunProcess},
    {"fetch", ringmaster::kProgramProcess, true, ringmaster::RunFetch},
    {"probe", ringmaster::kProgramProcess, false, Probe},
    {"evaluate", ringmaster::kProgramEvaluate, false, ringmaster::RunEvaluate},
};

// Null when `args` names no command there is.
const Command* FindCommand(const std::vector<std::string>& args) {
  if (args.empty() || args[0].starts_with("-")) return &kAgent;
  for (const Command& command : kCommands) {
    if (args[0] == command.name) return &command;
  }
  return nullptr;
}

int WrongUsage(const std::string& text) {
  std::fputs((text + "\nTry 'ringmaster-worker --help'.\n").c_str(), stderr);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  ringmaster::DieWithParent(SIGKILL);
  signal(SIGPIPE, SIG_IGN);
  std::vector<std::string> args(argv + 1, argv + argc);
  const Command* command = FindCommand(args);
  if (command == nullptr) {
    return WrongUsage("ringmaster-worker: unknown command '" + args[0] +
                      "'; to join a run, pass --coordinator HOST:PORT");
  }
  std::string name = "ringmaster-worker";
  if (command != &kAgent) {
    name += " " + args[0];
    args.erase(args.begin());
  }
  Settings settings;
  ringmaster::EarlyExit early_exit;
  if (!ringmaster::ParseSettings(command->program, name, args, &settings, &early_exit)) {
    std::fputs(early_exit.text.c_str(), early_exit.code == 0 ? stdout : stderr);
    return early_exit.code;
  }
  if (command->needs_coordinator && settings.coordinator.empty()) {
    return WrongUsage(name + ": --coordinator HOST:PORT is needed: the run to join");
  }
  ringmaster::InitLogging("ringmaster-worker", settings.verbosity);
  return command->run(settings);
}
