// RM_RETURN_IF_ERROR and RM_ASSIGN_OR_RETURN: pass a failed absl::Status on to the caller.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the enclosing function with the status of `expr` unless it is OK.
#define RM_RETURN_IF_ERROR(expr)                            \
  do {                                                      \
    if (absl::Status rm_status = (expr); !rm_status.ok()) { \
      return rm_status;                                     \
    }                                                       \
  } while (false)

#define RM_CONCAT_INNER(a, b) a##b
#define RM_CONCAT(a, b) RM_CONCAT_INNER(a, b)

// Assigns the value of the StatusOr `expr` to `lhs` (which may declare a variable), or returns.
#define RM_ASSIGN_OR_RETURN(lhs, expr) \
  RM_ASSIGN_OR_RETURN_INNER(RM_CONCAT(rm_status_or_, __LINE__), lhs, expr)
#define RM_ASSIGN_OR_RETURN_INNER(name, lhs, expr) \
  auto name = (expr);                              \
  if (!name.ok()) return name.status();            \
  lhs = *std::move(name)
