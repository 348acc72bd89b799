// Which of this machine's addresses others reach it at.
//
// Thread safety: pure functions over the system's routes.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace ringmaster {

// The IP address that a connection to `address` ("HOST:PORT") leaves from: what the route says; no
// packet is sent. UNAVAILABLE: the host name is not known or there is no route.
absl::StatusOr<std::string> LocalAddressTowards(const std::string& address);

}  // namespace ringmaster
