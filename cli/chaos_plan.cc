#include "cli/chaos_plan.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/settings.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

constexpr int kMaxCount = 100000;
constexpr double kMaxSeconds = 3600;
constexpr uint32_t kMaxSuccessorAgeMs = 60;
constexpr size_t kActionsPerLine = 8;

struct FaultRow {
  Fault fault;
  const char* name;
  const char* help;
};
constexpr FaultRow kFaults[] = {
    {Fault::kKill, "kill", "SIGKILL to a random worker process"},
    {Fault::kHang, "hang", "SIGSTOP to a random worker process; SIGCONT after hang-for"},
    {Fault::kPartition, "partition",
     "a random worker process is cut off from everybody; connected again after cut-for\n"
     "(needs root and nft)"},
    {Fault::kKillCoordinator, "kill-coordinator", "SIGKILL to the coordinator"},
    {Fault::kKillReplay, "kill-replay",
     "SIGKILL to the coordinator, and to its successor within milliseconds of its start"},
    {Fault::kKillAll, "kill-all", "SIGKILL to the coordinator and all worker processes at once"},
};

struct TimeRow {
  const char* name;
  absl::Duration ChaosSpec::*field;
  const char* help;
};
constexpr TimeRow kTimes[] = {
    {"every", &ChaosSpec::every, "mean time from the end of one action to the next"},
    {"hang-for", &ChaosSpec::hang_for, "longer than --patience, or nobody notices"},
    {"cut-for", &ChaosSpec::cut_for, "longer than --patience, or nobody notices"},
};

absl::Status Wrong(const std::string& message) { return absl::InvalidArgumentError(message); }

std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const FaultRow& row : kFaults) names.push_back(row.name);
  for (const TimeRow& row : kTimes) names.push_back(row.name);
  return names;
}

absl::Status UnknownName(const std::string& name) {
  const std::string closest = ClosestMatch(name, Names());
  return Wrong(absl::StrCat("there is no '", name, "'",
                            closest.empty() ? "" : "; did you mean " + closest + "?",
                            " Possible are ", absl::StrJoin(Names(), ", ")));
}

absl::Status ReadCount(const FaultRow& row, const std::string& value, ChaosSpec* spec) {
  int count = 0;
  if (!absl::SimpleAtoi(value, &count) || count < 1 || count > kMaxCount) {
    return Wrong(absl::StrFormat("%s wants how many, from 1 to %d, as %s:3; got '%s'", row.name,
                                 kMaxCount, row.name, value));
  }
  spec->counts.push_back({row.fault, count});
  return absl::OkStatus();
}

absl::Status ReadTime(const TimeRow& row, const std::string& value, ChaosSpec* spec) {
  double seconds = 0;
  if (!absl::SimpleAtod(value, &seconds) || !(seconds >= 0.001) || seconds > kMaxSeconds) {
    return Wrong(absl::StrFormat("%s wants seconds, from 0.001 to %.0f, as %s:2.5; got '%s'",
                                 row.name, kMaxSeconds, row.name, value));
  }
  spec->*row.field = absl::Seconds(seconds);
  return absl::OkStatus();
}

absl::Status ReadPart(const std::string& name, const std::string& value, ChaosSpec* spec) {
  for (const FaultRow& row : kFaults) {
    if (name == row.name) return ReadCount(row, value, spec);
  }
  for (const TimeRow& row : kTimes) {
    if (name == row.name) return ReadTime(row, value, spec);
  }
  return UnknownName(name);
}

// Random numbers that are the same with every standard library: of <random> only the engine is
// specified to the bit, the distributions are not.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  uint32_t Below(uint32_t bound) { return static_cast<uint32_t>(engine_() % bound); }

  // Exponentially distributed, in whole milliseconds: the last bits of log() are the library's own.
  absl::Duration Exponential(absl::Duration mean) {
    const double unit = static_cast<double>((engine_() >> 11) + 1) * 0x1p-53;  // (0, 1]
    return absl::Milliseconds(std::llround(-std::log(unit) * absl::ToDoubleMilliseconds(mean)));
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace

std::string FaultName(Fault fault) {
  for (const FaultRow& row : kFaults) {
    if (row.fault == fault) return row.name;
  }
  return "unknown";
}

absl::StatusOr<ChaosSpec> ParseChaosSpec(const std::string& text) {
  ChaosSpec spec;
  std::set<std::string> seen;
  for (const absl::string_view part : absl::StrSplit(text, ',', absl::SkipWhitespace())) {
    const std::pair<std::string, std::string> named =
        absl::StrSplit(absl::StripAsciiWhitespace(part), absl::MaxSplits(':', 1));
    RM_RETURN_IF_ERROR(ReadPart(named.first, named.second, &spec));
    if (!seen.insert(named.first).second) {
      return Wrong(absl::StrCat(named.first, " is given twice; add the counts"));
    }
  }
  if (spec.counts.empty()) {
    return Wrong(absl::StrCat("nothing is to be broken in '", text, "': wants a fault and a count,",
                              " as kill:3. Possible are ", absl::StrJoin(Names(), ", ")));
  }
  std::sort(spec.counts.begin(), spec.counts.end(),
            [](const auto& a, const auto& b) { return a.fault < b.fault; });
  return spec;
}

std::string ChaosSpecHelp() {
  std::string text =
      "\nSPEC is a list of faults with their counts, and of times in seconds, as\n"
      "kill:200,hang:3,every:0.7\n\n";
  const auto add = [&text](const std::string& name, const std::string& help) {
    const std::string indent = "\n" + std::string(22, ' ');
    text +=
        absl::StrFormat("  %-19s %s\n", name, absl::StrJoin(absl::StrSplit(help, '\n'), indent));
  };
  const ChaosSpec defaults;
  for (const FaultRow& row : kFaults) add(absl::StrCat(row.name, ":N"), row.help);
  for (const TimeRow& row : kTimes) {
    add(absl::StrCat(row.name, ":SECONDS"),
        absl::StrFormat("%s (default: %g)", row.help, absl::ToDoubleSeconds(defaults.*row.field)));
  }
  text +=
      "\nOnly processes of this host are touched. Exit codes: 0 all is done, 3 the run was over\n"
      "before, 1 it could not be done, 2 wrong usage.\n";
  return text;
}

std::vector<ChaosAction> PlanChaos(const ChaosSpec& spec, uint64_t seed) {
  std::vector<ChaosAction> plan;
  for (const ChaosSpec::Count& count : spec.counts) {
    ChaosAction action;
    action.fault = count.fault;
    plan.insert(plan.end(), static_cast<size_t>(count.count), action);
  }
  Random random(seed);
  for (size_t left = plan.size(); left > 1; --left) {
    std::swap(plan[left - 1], plan[random.Below(static_cast<uint32_t>(left))]);
  }
  for (ChaosAction& action : plan) {
    action.wait = random.Exponential(spec.every);
    action.pick = random.Below(1000);
    const auto age = absl::Milliseconds(random.Below(kMaxSuccessorAgeMs + 1));
    if (action.fault == Fault::kKillReplay) action.successor_age = age;
  }
  return plan;
}

std::vector<std::string> PlanLines(const std::vector<ChaosAction>& plan) {
  std::vector<std::string> lines;
  for (size_t i = 0; i < plan.size(); ++i) {
    if (i % kActionsPerLine == 0) lines.emplace_back();
    std::string& line = lines.back();
    absl::StrAppendFormat(&line, "%s+%.3fs %s@%d", line.empty() ? "" : ", ",
                          absl::ToDoubleSeconds(plan[i].wait), FaultName(plan[i].fault),
                          plan[i].pick);
  }
  return lines;
}

}  // namespace ringmaster
