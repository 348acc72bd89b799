// The ranks that an error is about, carried by the error.
//
// Thread safety: pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace ringmaster {

inline constexpr char kUnreachablePayload[] = "ringmaster/unreachable-rank";

// `status`, an error, with the rank that could not be reached.
inline absl::Status WithUnreachable(absl::Status status, int rank) {
  status.SetPayload(kUnreachablePayload, absl::Cord(absl::StrCat(rank)));
  return status;
}

// The ranks that `status` names; empty where none is known.
inline std::vector<uint32_t> Unreachable(const absl::Status& status) {
  const auto payload = status.GetPayload(kUnreachablePayload);
  uint32_t rank = 0;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &rank)) return {};
  return {rank};
}

}  // namespace ringmaster
