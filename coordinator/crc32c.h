// CRC-32C (Castagnoli, polynomial 0x1EDC6F41, reflected; RFC 3720), which frames the records of
// event files and of the journal.
//
// Thread safety: pure functions.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace ringmaster {

// The CRC-32C of `data`, by the fastest implementation that this CPU can run.
uint32_t Crc32c(std::string_view data);

// The same as the record format stores it: rotated right by 15 bits plus a constant, because the
// CRC of data that itself holds CRCs is a poor check.
uint32_t MaskedCrc32c(std::string_view data);

// One way of computing it, for tests: all give the same values.
struct Crc32cImplementation {
  const char* name;
  uint32_t (*crc)(std::string_view data);
};

// Those that this CPU can run, the fastest last. The table-driven one is always there.
std::vector<Crc32cImplementation> Crc32cImplementations();

}  // namespace ringmaster
