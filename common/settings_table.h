// The table behind common/settings.h: one row per option, with its checks.
//
// Thread safety: immutable after first use; safe from several threads.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/settings.h"

namespace ringmaster {

struct SettingOption {
  std::string name;       // long name, without dashes
  unsigned programs = 0;  // Program bits
  std::string group;      // heading in --help
  std::string value;      // placeholder in --help; empty for a switch
  std::string help;
  // Sets the field. INVALID_ARGUMENT: says what is allowed ("wants a whole number of at least 1").
  absl::Status (*parse)(const std::string& text, Settings* settings);
  // The text that parse() turns into the field's value.
  std::string (*format)(const Settings& settings);
  bool hidden = false;      // not in --help: between our own programs
  bool positional = false;  // given without its name
};

// In the order of --help, which is also the order they are applied in: --optimizer comes before
// --learning-rate because it decides its default.
const std::vector<SettingOption>& SettingOptions();

// The settings of nobody having asked for anything, given the optimizer.
Settings DefaultSettings(OptimizerSpec::Kind optimizer);

}  // namespace ringmaster
