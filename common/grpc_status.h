// gRPC's status as Abseil's. The codes are the same numbers. Thread safety: pure function.
#pragma once

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace ringmaster {

inline absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace ringmaster
