// A history to lose: the entries 1, 2, 3 ..., and snapshots that stand for all up to a number. What
// a journal gives back is then right or wrong by itself.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace ringmaster {

// Of many sizes: less than a sector, and several.
inline std::string NumberedEntry(uint64_t number) {
  return absl::StrCat(number, " ", std::string(number * 37 % 1500, static_cast<char>(number)));
}

inline std::string NumberedSnapshot(uint64_t number) { return NumberedEntry(number); }

// The number of the last entry; nothing if the entries are not a snapshot and what followed it.
inline std::optional<uint64_t> LastNumber(const std::vector<std::string>& entries) {
  if (entries.empty()) return std::nullopt;
  uint64_t number = 0;
  const std::string& snapshot = entries[0];
  if (!snapshot.empty() && (!absl::SimpleAtoi(snapshot.substr(0, snapshot.find(' ')), &number) ||
                            snapshot != NumberedSnapshot(number))) {
    return std::nullopt;
  }
  for (size_t i = 1; i < entries.size(); ++i) {
    if (entries[i] != NumberedEntry(++number)) return std::nullopt;
  }
  return number;
}

}  // namespace ringmaster
