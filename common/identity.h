// Who a process is: the host it runs on, and numbers that tell one start from another.
//
// Thread safety: safe from several threads.
#pragma once

#include <cstdint>
#include <string>

namespace ringmaster {

// The name of this host, for people; "localhost" if it has none.
std::string HostName();

// 64 random bits from the operating system: an incarnation, an id.
uint64_t RandomId();

}  // namespace ringmaster
