#include "common/settings_table.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

constexpr unsigned kTrain = kProgramTrain;
constexpr unsigned kCoordinator = kProgramCoordinator;
constexpr unsigned kWorker = kProgramWorker;
constexpr unsigned kEvaluate = kProgramEvaluate;
constexpr unsigned kProcess = kProgramProcess;
constexpr unsigned kStatus = kProgramStatus;
constexpr unsigned kChaos = kProgramChaos;
constexpr unsigned kAll = kTrain | kCoordinator | kWorker | kEvaluate | kProcess | kStatus | kChaos;

constexpr char kWhatIsTrained[] = "What is trained";
constexpr char kWhereItGoes[] = "Where data and results are";
constexpr char kWhoTakesPart[] = "Who takes part";
constexpr char kWhenItFails[] = "When something fails";
constexpr char kHowItComputes[] = "How a node computes";
constexpr char kWhatIsSeen[] = "What is seen";

absl::Status Wants(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("wants ", what));
}

template <typename T>
absl::Status ParseInteger(const std::string& text, T min, T max, T* out) {
  T value{};
  if (!absl::SimpleAtoi(text, &value) || value < min || value > max) {
    return Wants(max == std::numeric_limits<T>::max()
                     ? absl::StrCat("a whole number of at least ", min)
                     : absl::StrCat("a whole number from ", min, " to ", max));
  }
  *out = value;
  return absl::OkStatus();
}

absl::Status ParseSwitch(const std::string& text, bool* out) {
  if (!absl::SimpleAtob(text, out)) return Wants("true or false");
  return absl::OkStatus();
}

std::string FormatSwitch(bool value) { return value ? "true" : "false"; }

absl::Status ParseText(const std::string& text, std::string* out) {
  *out = text;
  return absl::OkStatus();
}

absl::Status ParseLayers(const std::string& text, Settings* settings) {
  std::vector<int> layers;
  for (const auto part : absl::StrSplit(text, ',')) {
    int width = 0;
    if (!absl::SimpleAtoi(part, &width)) {
      return Wants("widths separated by commas, input first, as 784,128,10");
    }
    layers.push_back(width);
  }
  const ModelSpec model{layers};
  if (layers.size() < 2 || *std::min_element(layers.begin(), layers.end()) < 1 ||
      *std::max_element(layers.begin(), layers.end()) > 1 << 20) {
    return Wants("at least two widths from 1 to 1048576, input first, as 784,128,10");
  }
  settings->layers = model.layers;
  return absl::OkStatus();
}

absl::Status ParseOptimizer(const std::string& text, Settings* settings) {
  if (text != "adam" && text != "sgd") return Wants("adam or sgd");
  const auto kind = text == "adam" ? OptimizerSpec::Kind::kAdam : OptimizerSpec::Kind::kSgd;
  settings->optimizer = DefaultSettings(kind).optimizer;
  return absl::OkStatus();
}

absl::Status ParseLearningRate(const std::string& text, Settings* settings) {
  float rate = 0;
  if (!absl::SimpleAtof(text, &rate) || !std::isfinite(rate) || rate <= 0) {
    return Wants("a number above 0, as 0.001");
  }
  settings->optimizer.learning_rate = rate;
  return absl::OkStatus();
}

absl::Status ParseRange(const std::string& text, CountRange* out) {
  auto range = ParseCountRange(text);
  if (!range.ok()) return range.status();
  *out = *range;
  return absl::OkStatus();
}

std::string FormatRange(const CountRange& range) {
  if (!range.given()) return "";
  if (range.min == range.max) return absl::StrCat(range.min);
  if (range.max == std::numeric_limits<int>::max()) return absl::StrCat(range.min, ":");
  return absl::StrCat(range.min, ":", range.max);
}

// "HOST:PORT"; an IPv6 address in brackets.
absl::Status ParseAddress(const std::string& text, int min_port, std::string* out) {
  const size_t colon = text.rfind(':');
  const std::string host = text.substr(0, colon);
  int port = -1;
  const bool bracketed = host.starts_with("[") && host.ends_with("]");
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(text.substr(colon + 1), &port) || port < min_port || port > 65535 ||
      (host.find(':') != std::string::npos && !bracketed)) {
    return Wants(absl::StrCat("HOST:PORT with a port from ", min_port,
                              " to 65535, as 127.0.0.1:29400 or [::1]:29400"));
  }
  *out = text;
  return absl::OkStatus();
}

absl::Status ParseSeconds(const std::string& text, double least, const char* wanted,
                          absl::Duration* out) {
  double seconds = 0;
  if (!absl::SimpleAtod(text, &seconds) || !(seconds >= least) || !(seconds > 0) || seconds > 1e7) {
    return Wants(wanted);
  }
  *out = absl::Seconds(seconds);
  return absl::OkStatus();
}

std::string FormatSeconds(absl::Duration duration) {
  return absl::StrCat(absl::ToDoubleSeconds(duration));
}

std::string FormatCheckpointInterval(const CheckpointInterval& interval) {
  if (interval.steps > 0) return absl::StrCat(interval.steps);
  return FormatSeconds(interval.time) + "s";
}

absl::Status ParseMaxFailures(const std::string& text, Settings* settings) {
  if (text != "unlimited") return ParseInteger(text, 0, 1000000, &settings->max_failures);
  settings->max_failures = -1;
  return absl::OkStatus();
}

absl::Status ParseProcesses(const std::string& text, Settings* settings) {
  int count = 0;
  const bool number = absl::SimpleAtoi(text, &count) && count >= 1 && count <= 4096;
  if (text != "auto" && text != "gpu" && text != "cpu" && !number) {
    return Wants("auto, gpu, cpu or a number from 1 to 4096");
  }
  settings->processes = text;
  return absl::OkStatus();
}

absl::Status ParseBackend(const std::string& text, Settings* settings) {
  if (text == "auto") {
    settings->backend = BackendChoice::kAuto;
  } else if (text == "cpu") {
    settings->backend = BackendChoice::kCpu;
  } else if (text == "cuda") {
    settings->backend = BackendChoice::kCuda;
  } else {
    return Wants("auto, cpu or cuda");
  }
  return absl::OkStatus();
}

std::string FormatBackend(const Settings& settings) {
  if (settings.backend == BackendChoice::kCpu) return "cpu";
  return settings.backend == BackendChoice::kCuda ? "cuda" : "auto";
}

absl::Status ParseProgress(const std::string& text, Settings* settings) {
  if (text != "auto" && text != "bar" && text != "lines" && text != "none") {
    return Wants("auto, bar, lines or none");
  }
  settings->progress = text;
  return absl::OkStatus();
}

template <typename T>
std::string FormatNumber(T value) {
  return absl::StrCat(value);
}

// A float in the fewest digits that read back as the same.
std::string FormatFloat(float value) {
  for (int digits = 6; digits < 9; ++digits) {
    char text[32];
    snprintf(text, sizeof text, "%.*g", digits, static_cast<double>(value));
    if (std::strtof(text, nullptr) == value) return text;
  }
  char text[32];
  snprintf(text, sizeof text, "%.9g", static_cast<double>(value));
  return text;
}

using Text = const std::string&;

void AddTrainedOptions(std::vector<SettingOption>* options) {
  options->insert(
      options->end(),
      {
          {"epochs", kTrain | kCoordinator, kWhatIsTrained, "N", "passes over the training samples",
           [](Text t, Settings* s) { return ParseInteger(t, 1u, 1000000u, &s->epochs); },
           [](const Settings& s) { return FormatNumber(s.epochs); }},
          {"global-batch", kTrain | kCoordinator, kWhatIsTrained, "N",
           "samples a step, over all processes",
           [](Text t, Settings* s) { return ParseInteger(t, 1u, 1u << 20, &s->global_batch); },
           [](const Settings& s) { return FormatNumber(s.global_batch); }},
          {"layers", kTrain | kCoordinator, kWhatIsTrained, "W,W,...",
           "widths of the network, input first (default: the image size,128,the class count)",
           ParseLayers, [](const Settings& s) { return absl::StrJoin(s.layers, ","); }},
          {"optimizer", kTrain | kCoordinator, kWhatIsTrained, "adam|sgd", "how weights move",
           ParseOptimizer,
           [](const Settings& s) {
             return std::string(s.optimizer.kind == OptimizerSpec::Kind::kAdam ? "adam" : "sgd");
           }},
          {"learning-rate", kTrain | kCoordinator, kWhatIsTrained, "X",
           "step size (default: 0.001 for adam, 0.01 for sgd)", ParseLearningRate,
           [](const Settings& s) { return FormatFloat(s.optimizer.learning_rate); }},
          {"seed", kTrain | kCoordinator | kChaos, kWhatIsTrained, "N",
           "decides the initial weights, the order of the samples, and what chaos breaks when",
           [](Text t, Settings* s) {
             return ParseInteger(t, uint64_t{0}, std::numeric_limits<uint64_t>::max(), &s->seed);
           },
           [](const Settings& s) { return FormatNumber(s.seed); }},
          {"reproducible", kTrain | kCoordinator, kWhatIsTrained, "",
           "the same weights to the bit at any number of processes and on any device; slower",
           [](Text t, Settings* s) { return ParseSwitch(t, &s->reproducible); },
           [](const Settings& s) { return FormatSwitch(s.reproducible); }},
      });
}

void AddPlaceOptions(std::vector<SettingOption>* options) {
  options->insert(
      options->end(),
      {
          {"data-dir", kTrain | kCoordinator | kWorker | kEvaluate | kProcess, kWhereItGoes, "DIR",
           "the four IDX files, gzip or plain (default: data/mnist of this tree)",
           [](Text t, Settings* s) { return ParseText(t, &s->data_dir); },
           [](const Settings& s) { return s.data_dir; }},
          {"run-dir", kTrain | kCoordinator, kWhereItGoes, "DIR",
           "logs, weights and report; new, empty, or of a run to go on with (default: runs/<UTC "
           "time>-<name>)",
           [](Text t, Settings* s) { return ParseText(t, &s->run_dir); },
           [](const Settings& s) { return s.run_dir; }},
          {"name", kTrain | kCoordinator, kWhereItGoes, "NAME", "part of the default --run-dir",
           [](Text t, Settings* s) {
             if (t.empty() || t.find('/') != std::string::npos) return Wants("a name without '/'");
             return ParseText(t, &s->name);
           },
           [](const Settings& s) { return s.name; }},
          {"report", kTrain | kCoordinator, kWhereItGoes, "FILE",
           "the results as JSON (default: report.json in the run directory)",
           [](Text t, Settings* s) { return ParseText(t, &s->report); },
           [](const Settings& s) { return s.report; }},
          {"weights", kEvaluate, kWhereItGoes, "WEIGHTS", "a safetensors file",
           [](Text t, Settings* s) { return ParseText(t, &s->weights); },
           [](const Settings& s) { return s.weights; }, false, true},
      });
}

void AddMemberOptions(std::vector<SettingOption>* options) {
  options->insert(options->end(),
                  {
                      {"workers", kTrain | kCoordinator, kWhoTakesPart, "N|MIN:MAX",
                       "processes in the run (default: train starts one per GPU, or two on CPU)",
                       [](Text t, Settings* s) { return ParseRange(t, &s->workers); },
                       [](const Settings& s) { return FormatRange(s.workers); }},
                      {"nodes", kCoordinator, kWhoTakesPart, "N|MIN:MAX",
                       "machines to wait for, each with all its processes (default: 1)",
                       [](Text t, Settings* s) { return ParseRange(t, &s->nodes); },
                       [](const Settings& s) { return FormatRange(s.nodes); }},
                      {"listen", kTrain | kCoordinator, kWhoTakesPart, "HOST:PORT",
                       "where the coordinator listens; port 0 picks a free one",
                       [](Text t, Settings* s) { return ParseAddress(t, 0, &s->listen); },
                       [](const Settings& s) { return s.listen; }},
                      {"coordinator", kWorker | kProcess | kStatus | kChaos, kWhoTakesPart,
                       "HOST:PORT", "the coordinator to join",
                       [](Text t, Settings* s) { return ParseAddress(t, 1, &s->coordinator); },
                       [](const Settings& s) { return s.coordinator; }},
                      {"join-timeout", kTrain | kCoordinator | kWorker | kProcess, kWhoTakesPart,
                       "SECONDS", "how long to wait for the others",
                       [](Text t, Settings* s) {
                         return ParseSeconds(t, 0, "seconds above 0, as 600", &s->join_timeout);
                       },
                       [](const Settings& s) { return FormatSeconds(s.join_timeout); }},
                  });
}

void AddFailureOptions(std::vector<SettingOption>* options) {
  options->insert(
      options->end(),
      {
          {"checkpoint-every", kTrain | kCoordinator, kWhenItFails, "STEPS|SECONDSs",
           "checkpoints besides those after each epoch, as 500 or 30s (default: 30s)",
           [](Text t, Settings* s) {
             auto interval = ParseCheckpointInterval(t);
             if (!interval.ok()) return interval.status();
             s->checkpoint_every = *interval;
             return absl::OkStatus();
           },
           [](const Settings& s) { return FormatCheckpointInterval(s.checkpoint_every); }},
          {"resume", kTrain | kCoordinator, kWhenItFails, "auto|never|FILE",
           "auto: go on with the run in --run-dir, if there is one; FILE: a new run from that "
           "checkpoint",
           [](Text t, Settings* s) {
             if (t.empty()) return Wants("auto, never or the path of a checkpoint");
             return ParseText(t, &s->resume);
           },
           [](const Settings& s) { return s.resume; }},
          {"patience", kTrain | kCoordinator, kWhenItFails, "SECONDS",
           "how long a process may be silent before it counts as lost; other limits follow",
           [](Text t, Settings* s) {
             return ParseSeconds(t, 0.1, "seconds of at least 0.1, as 3", &s->patience);
           },
           [](const Settings& s) { return FormatSeconds(s.patience); }},
          {"max-failures", kTrain | kCoordinator, kWhenItFails, "N|unlimited",
           "failures to survive; unlimited, the default: any number, as long as there is progress "
           "between them",
           ParseMaxFailures,
           [](const Settings& s) {
             return s.max_failures < 0 ? std::string("unlimited") : absl::StrCat(s.max_failures);
           }},
          {"chaos", kTrain, kWhenItFails, "SPEC",
           "break things on purpose, as kill:5,hang:1 (see 'ringmaster chaos --help')",
           [](Text t, Settings* s) { return ParseText(t, &s->chaos); },
           [](const Settings& s) { return s.chaos; }},
          {"spec", kChaos, kWhenItFails, "SPEC", "what to break, as kill:5,hang:1",
           [](Text t, Settings* s) { return ParseText(t, &s->chaos); },
           [](const Settings& s) { return s.chaos; }},
      });
}

void AddComputeOptions(std::vector<SettingOption>* options) {
  options->insert(
      options->end(),
      {
          {"processes", kWorker, kHowItComputes, "auto|gpu|cpu|N",
           "processes of this node; auto: one per GPU, or one on CPU", ParseProcesses,
           [](const Settings& s) { return s.processes; }},
          {"backend", kTrain | kWorker | kEvaluate | kProcess, kHowItComputes, "auto|cpu|cuda",
           "what computes; auto: the GPU where one can be used", ParseBackend, FormatBackend},
          {"threads", kTrain | kWorker | kEvaluate | kProcess, kHowItComputes, "N",
           "CPU threads a process (default: 1; more pay for wide layers); 0: its share of the "
           "cores",
           [](Text t, Settings* s) { return ParseInteger(t, 0, 1024, &s->threads); },
           [](const Settings& s) { return FormatNumber(s.threads); }},
          {"cuda-libs", kTrain | kWorker | kEvaluate | kProcess, kHowItComputes, "DIR[:DIR]",
           "where NVIDIA's libraries are, if not in the usual places",
           [](Text t, Settings* s) { return ParseText(t, &s->cuda_libs); },
           [](const Settings& s) { return s.cuda_libs; }},
      });
}

void AddSeenOptions(std::vector<SettingOption>* options) {
  options->insert(options->end(),
                  {
                      {"dry-run", kTrain, kWhatIsSeen, "",
                       "print the shard plan, the model and where everything would run; then stop",
                       [](Text t, Settings* s) { return ParseSwitch(t, &s->dry_run); },
                       [](const Settings& s) { return FormatSwitch(s.dry_run); }},
                      {"progress", kTrain | kCoordinator, kWhatIsSeen, "auto|bar|lines|none",
                       "auto: a bar on a terminal, else a line an epoch", ParseProgress,
                       [](const Settings& s) { return s.progress; }},
                      {"verbosity", kAll, kWhatIsSeen, "N", "-1 (as -q) to 2 (as -vv)",
                       [](Text t, Settings* s) { return ParseInteger(t, -1, 2, &s->verbosity); },
                       [](const Settings& s) { return FormatNumber(s.verbosity); }},
                  });
}

void AddHiddenOptions(std::vector<SettingOption>* options) {
  options->insert(
      options->end(),
      {
          {"ready-fd", kCoordinator, "", "FD", "",
           [](Text t, Settings* s) { return ParseInteger(t, -1, 1 << 20, &s->ready_fd); },
           [](const Settings& s) { return FormatNumber(s.ready_fd); }, true},
          {"data-fd", kProcess, "", "FD", "",
           [](Text t, Settings* s) { return ParseInteger(t, -1, 1 << 20, &s->data_fd); },
           [](const Settings& s) { return FormatNumber(s.data_fd); }, true},
          {"note-fd", kProcess, "", "FD", "",
           [](Text t, Settings* s) { return ParseInteger(t, -1, 1 << 20, &s->note_fd); },
           [](const Settings& s) { return FormatNumber(s.note_fd); }, true},
          {"vault-fd", kProcess, "", "FD", "",
           [](Text t, Settings* s) { return ParseInteger(t, -1, 1 << 20, &s->vault_fd); },
           [](const Settings& s) { return FormatNumber(s.vault_fd); }, true},
          {"local-rank", kProcess, "", "N", "",
           [](Text t, Settings* s) { return ParseInteger(t, 0, 4095, &s->local_rank); },
           [](const Settings& s) { return FormatNumber(s.local_rank); }, true},
          {"local-world-size", kProcess, "", "N", "",
           [](Text t, Settings* s) { return ParseInteger(t, 1, 4096, &s->local_world_size); },
           [](const Settings& s) { return FormatNumber(s.local_world_size); }, true},
          {"node-id", kProcess, "", "ID", "",
           [](Text t, Settings* s) { return ParseText(t, &s->node_id); },
           [](const Settings& s) { return s.node_id; }, true},
      });
}

}  // namespace

absl::StatusOr<CountRange> ParseCountRange(const std::string& text) {
  constexpr int kMost = std::numeric_limits<int>::max();
  const std::vector<std::string> parts = absl::StrSplit(text, absl::MaxSplits(':', 1));
  CountRange range;
  const bool min_ok = absl::SimpleAtoi(parts[0], &range.min);
  bool max_ok = true;
  if (parts.size() == 1) {
    range.max = range.min;
  } else if (parts[1].empty()) {
    range.max = kMost;
  } else {
    max_ok = absl::SimpleAtoi(parts[1], &range.max);
  }
  if (!min_ok || !max_ok || range.min < 1 || range.max < range.min) {
    return Wants("a number of at least 1, or MIN:MAX, as 2, 2:5 or 2:");
  }
  return range;
}

absl::StatusOr<CheckpointInterval> ParseCheckpointInterval(const std::string& text) {
  CheckpointInterval interval;
  if (text.ends_with("s")) {
    const std::string seconds = text.substr(0, text.size() - 1);
    const absl::Status status =
        ParseSeconds(seconds, 0.01, "steps or seconds, as 500 or 30s", &interval.time);
    if (!status.ok()) return status;
    return interval;
  }
  if (!absl::SimpleAtoi(text, &interval.steps) || interval.steps == 0) {
    return Wants("steps or seconds, as 500 or 30s");
  }
  interval.time = absl::ZeroDuration();
  return interval;
}

Settings DefaultSettings(OptimizerSpec::Kind optimizer) {
  Settings settings;
  settings.optimizer.kind = optimizer;
  if (optimizer == OptimizerSpec::Kind::kSgd) settings.optimizer.learning_rate = 0.01f;
  return settings;
}

const std::vector<SettingOption>& SettingOptions() {
  static const auto* const options = [] {
    auto* all = new std::vector<SettingOption>;
    AddTrainedOptions(all);
    AddPlaceOptions(all);
    AddMemberOptions(all);
    AddFailureOptions(all);
    AddComputeOptions(all);
    AddSeenOptions(all);
    AddHiddenOptions(all);
    return all;
  }();
  return *options;
}

}  // namespace ringmaster
