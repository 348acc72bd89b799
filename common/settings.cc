#include "common/settings.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/dataset.h"
#include "common/settings_table.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

// A value and where it came from, for messages: "--epochs", "RINGMASTER_EPOCHS", "epochs in
// x.toml".
struct Given {
  std::string value;
  std::string source;
};

std::string EnvironmentName(const std::string& option) {
  return "RINGMASTER_" + absl::AsciiStrToUpper(absl::StrReplaceAll(option, {{"-", "_"}}));
}

absl::Status Wrong(const std::string& message) { return absl::InvalidArgumentError(message); }

std::string DidYouMean(const std::string& word, const std::vector<std::string>& candidates) {
  const std::string closest = ClosestMatch(word, candidates);
  return closest.empty() ? "" : absl::StrCat("; did you mean ", closest, "?");
}

const SettingOption* FindOption(const std::string& name) {
  for (const SettingOption& option : SettingOptions()) {
    if (option.name == name) return &option;
  }
  return nullptr;
}

std::vector<std::string> VisibleNames(unsigned programs, const std::string& prefix) {
  std::vector<std::string> names;
  for (const SettingOption& option : SettingOptions()) {
    if ((option.programs & programs) != 0 && !option.hidden && !option.positional) {
      names.push_back(prefix + option.name);
    }
  }
  for (const char* name : {"config", "help", "version", "verbose", "quiet"}) {
    names.push_back(prefix + name);
  }
  return names;
}

std::string ProgramNames(unsigned programs) {
  std::vector<std::string> names;
  if (programs & kProgramTrain) names.push_back("ringmaster train");
  if (programs & kProgramCoordinator) names.push_back("ringmaster-coordinator");
  if (programs & kProgramWorker) names.push_back("ringmaster-worker");
  if (programs & kProgramEvaluate) names.push_back("ringmaster evaluate");
  if (programs & kProgramStatus) names.push_back("ringmaster status");
  if (programs & kProgramChaos) names.push_back("ringmaster chaos");
  return absl::StrJoin(names, ", ");
}

// CLI11 takes "--epochs -1" for two options.
std::vector<std::string> JoinNegativeNumbers(const std::vector<std::string>& args) {
  std::vector<std::string> joined;
  for (const std::string& arg : args) {
    const bool negative =
        arg.size() > 1 && arg[0] == '-' && (std::isdigit(arg[1]) || arg[1] == '.');
    if (negative && !joined.empty() && joined.back().starts_with("--") &&
        joined.back().find('=') == std::string::npos) {
      joined.back() += "=" + arg;
    } else {
      joined.push_back(arg);
    }
  }
  return joined;
}

// One command line: collects what was given, and where, then applies it.
class Parser {
 public:
  explicit Parser(Program program) : program_(program) {}

  absl::Status Run(const std::vector<std::string>& args, Settings* settings) {
    RM_RETURN_IF_ERROR(ReadCommandLine(args));
    if (help_ || version_) return absl::OkStatus();
    ReadEnvironment();
    RM_RETURN_IF_ERROR(ReadConfigFile());
    return Apply(settings);
  }

  bool help() const { return help_; }
  bool version() const { return version_; }

 private:
  bool Takes(const SettingOption& option) const { return (option.programs & program_) != 0; }

  // The first place that gives an option counts: callers go from the strongest to the weakest.
  void Record(const SettingOption& option, std::string value, std::string source) {
    given_.try_emplace(option.name, Given{std::move(value), std::move(source)});
  }

  absl::Status ReadCommandLine(const std::vector<std::string>& args) {
    CLI::App app;
    app.set_help_flag();
    app.allow_extras();
    int verbose = 0;
    int quiet = 0;
    app.add_flag("-h,--help", help_);
    app.add_flag("--version", version_);
    app.add_flag("-v,--verbose", verbose);
    app.add_flag("-q,--quiet", quiet);
    app.add_option("--config", config_);
    std::map<std::string, std::string> values;
    std::map<std::string, CLI::Option*> options;
    for (const SettingOption& option : SettingOptions()) {
      if (!Takes(option)) continue;
      std::string& value = values[option.name];
      const std::string name = option.positional ? option.name : "--" + option.name;
      options[option.name] =
          option.value.empty() ? app.add_flag(name, value) : app.add_option(name, value);
      options[option.name]->take_last();
    }
    std::vector<std::string> reversed = JoinNegativeNumbers(args);
    std::reverse(reversed.begin(), reversed.end());
    try {
      app.parse(reversed);
    } catch (const CLI::ArgumentMismatch& error) {
      const std::string what = error.what();
      return Wrong(absl::StrCat(what.substr(0, what.find(':')), " needs a value"));
    } catch (const CLI::ParseError& error) {
      return Wrong(error.what());
    }
    if (help_ || version_) return absl::OkStatus();
    RM_RETURN_IF_ERROR(CheckExtras(app.remaining()));
    for (const auto& [name, option] : options) {
      if (option->count() > 0) Record(*FindOption(name), values[name], "--" + name);
    }
    if (verbose + quiet > 0) {
      Record(*FindOption("verbosity"), absl::StrCat(std::clamp(verbose - quiet, -1, 2)), "-v, -q");
    }
    return absl::OkStatus();
  }

  absl::Status CheckExtras(const std::vector<std::string>& extras) const {
    if (extras.empty()) return absl::OkStatus();
    const std::string& extra = extras.front();
    if (!extra.starts_with("-")) return Wrong(absl::StrCat("unexpected argument '", extra, "'"));
    const std::string name = extra.substr(0, extra.find('='));
    const SettingOption* other = name.starts_with("--") ? FindOption(name.substr(2)) : nullptr;
    if (other != nullptr && !other->hidden) {
      return Wrong(
          absl::StrCat(name, " is not an option here, but of ", ProgramNames(other->programs)));
    }
    return Wrong(
        absl::StrCat("unknown option ", name, DidYouMean(name, VisibleNames(program_, "--"))));
  }

  void ReadEnvironment() {
    for (const SettingOption& option : SettingOptions()) {
      const std::string name = EnvironmentName(option.name);
      const char* value = option.hidden ? nullptr : std::getenv(name.c_str());
      if (value != nullptr && Takes(option)) Record(option, value, name);
    }
    const char* config = std::getenv("RINGMASTER_CONFIG");
    if (config_.empty() && config != nullptr) config_ = config;
  }

  absl::Status ReadConfigFile() {
    if (config_.empty()) return absl::OkStatus();
    std::vector<CLI::ConfigItem> items;
    std::ifstream file(config_);
    if (!file) return Wrong(absl::StrCat("--config ", config_, ": the file cannot be read"));
    try {
      items = CLI::ConfigTOML().from_config(file);
    } catch (const CLI::Error& error) {
      return Wrong(absl::StrCat("--config ", config_, ": ", error.what()));
    }
    for (const CLI::ConfigItem& item : items) {
      const SettingOption* option = FindOption(item.name);
      if (!item.parents.empty() || option == nullptr || option->hidden) {
        return Wrong(absl::StrCat("--config ", config_, ": unknown setting ", item.fullname(),
                                  DidYouMean(item.name, VisibleNames(~0u, ""))));
      }
      // One file may serve all the programs.
      if (Takes(*option)) {
        Record(*option, absl::StrJoin(item.inputs, ","), item.name + " in " + config_);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Apply(Settings* settings) const {
    for (const SettingOption& option : SettingOptions()) {
      const auto found = given_.find(option.name);
      if (found == given_.end()) continue;
      const Given& given = found->second;
      const absl::Status status = option.parse(given.value, settings);
      if (!status.ok()) {
        return Wrong(absl::StrCat(given.source, ": ", std::string(status.message()), ", got '",
                                  given.value, "'"));
      }
    }
    return absl::OkStatus();
  }

  const Program program_;
  bool help_ = false;
  bool version_ = false;
  std::string config_;
  std::map<std::string, Given> given_;
};

constexpr size_t kHelpColumn = 30;

std::string HelpLine(const std::string& left, const std::string& right) {
  std::string line = "  " + left;
  if (line.size() + 2 > kHelpColumn) {
    line += "\n" + std::string(kHelpColumn, ' ');
  } else {
    line.append(kHelpColumn - line.size(), ' ');
  }
  return line + right + "\n";
}

std::string ShowDefault(const SettingOption& option) {
  const std::string value = option.format(Settings{});
  if (value.empty() || option.value.empty() || option.help.find("(default:") != std::string::npos) {
    return "";
  }
  return absl::StrCat(" (default: ", value, ")");
}

std::string Help(Program program, const std::string& name) {
  std::string positionals;
  std::string text;
  std::string group;
  for (const SettingOption& option : SettingOptions()) {
    if ((option.programs & program) == 0 || option.hidden) continue;
    if (option.positional) {
      positionals += " " + option.value;
      continue;
    }
    if (option.group != group) text += absl::StrCat("\n", group = option.group, ":\n");
    const std::string value = option.value.empty() ? "" : " " + option.value;
    text += HelpLine("--" + option.name + value, option.help + ShowDefault(option));
  }
  text += "\n";
  text += HelpLine("-v, -q", "say more, or only warnings and errors");
  text += HelpLine("--config FILE", "settings in TOML, as: epochs = 3");
  text += HelpLine("--version", "print the version");
  text += HelpLine("-h, --help", "print this");
  return absl::StrCat("usage: ", name, positionals, " [OPTIONS]\n", text,
                      "\nEach option can also be given as RINGMASTER_NAME in the environment "
                      "(RINGMASTER_EPOCHS=3)\nor in the --config file. A flag wins over the "
                      "environment, that over the file.\n");
}

}  // namespace

bool ParseSettings(Program program, const std::string& name, const std::vector<std::string>& args,
                   Settings* settings, EarlyExit* early_exit) {
  Parser parser(program);
  const absl::Status status = parser.Run(args, settings);
  if (!status.ok()) {
    *early_exit = {
        2, absl::StrCat(name, ": ", std::string(status.message()), "\nTry '", name, " --help'.\n")};
    return false;
  }
  if (parser.help()) *early_exit = {0, Help(program, name)};
  if (parser.version()) *early_exit = {0, absl::StrCat(name, " ", ProgramVersion(), "\n")};
  return !parser.help() && !parser.version();
}

std::vector<std::string> ToFlags(Program program, const Settings& settings) {
  const Settings defaults = DefaultSettings(settings.optimizer.kind);
  const Settings plain;
  std::vector<std::string> flags;
  for (const SettingOption& option : SettingOptions()) {
    if ((option.programs & program) == 0) continue;
    const std::string value = option.format(settings);
    // --optimizer itself differs from the plain default only.
    const bool is_default = value == option.format(defaults) && value == option.format(plain);
    if (is_default) continue;
    flags.push_back(option.positional ? value : absl::StrCat("--", option.name, "=", value));
  }
  return flags;
}

std::vector<std::string> SettingsEnvironment() {
  std::vector<std::string> names = {"RINGMASTER_CONFIG"};
  for (const SettingOption& option : SettingOptions()) {
    if (!option.hidden) names.push_back(EnvironmentName(option.name));
  }
  return names;
}

absl::StatusOr<std::string> FindDataDirectory(const Settings& settings) {
  if (!settings.data_dir.empty()) return settings.data_dir;
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  std::vector<std::string> searched;
  for (auto at = self.parent_path(); !at.empty(); at = at.parent_path()) {
    for (const char* place : {"data/mnist", "share/ringmaster/mnist"}) {
      const auto directory = at / place;
      searched.push_back(directory.string());
      const auto first = directory / kDatasetFileNames[0];
      if (std::filesystem::exists(first, error) ||
          std::filesystem::exists(first.string() + ".gz", error)) {
        return directory.string();
      }
    }
    if (at == at.root_path()) break;
  }
  return absl::NotFoundError(absl::StrCat("no data set found; pass --data-dir DIR. Searched: ",
                                          absl::StrJoin(searched, ", ")));
}

std::string ClosestMatch(const std::string& word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = word.size() / 3 + 2;  // further off is no help
  for (const std::string& candidate : candidates) {
    std::vector<size_t> row(candidate.size() + 1);
    for (size_t j = 0; j < row.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= word.size(); ++i) {
      size_t diagonal = std::exchange(row[0], i);
      for (size_t j = 1; j < row.size(); ++j) {
        const size_t replaced = diagonal + (word[i - 1] == candidate[j - 1] ? 0 : 1);
        diagonal = row[j];
        row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

std::string ProgramVersion() { return RINGMASTER_VERSION; }

}  // namespace ringmaster
