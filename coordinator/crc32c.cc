#include "coordinator/crc32c.h"

#include <array>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace ringmaster {
namespace {

constexpr uint32_t kReflectedPolynomial = 0x82F63B78u;
constexpr uint32_t kMaskDelta = 0xA282EAD8u;

// Entry i is the CRC's change by a byte i.
constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < table.size(); ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1) ^ ((crc & 1) != 0 ? kReflectedPolynomial : 0);
    }
    table[byte] = crc;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kTable = MakeTable();

uint32_t TableCrc(std::string_view data) {
  uint32_t crc = ~0u;
  for (const char c : data) {
    crc = kTable[(crc ^ static_cast<uint8_t>(c)) & 0xFF] ^ (crc >> 8);
  }
  return ~crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t Sse42Crc(std::string_view data) {
  uint64_t crc = ~0u;
  while (data.size() >= sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, data.data(), sizeof word);
    crc = _mm_crc32_u64(crc, word);
    data.remove_prefix(sizeof word);
  }
  uint32_t tail = static_cast<uint32_t>(crc);
  for (const char c : data) tail = _mm_crc32_u8(tail, static_cast<uint8_t>(c));
  return ~tail;
}
#endif

}  // namespace

std::vector<Crc32cImplementation> Crc32cImplementations() {
  std::vector<Crc32cImplementation> implementations = {{"table", TableCrc}};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("sse4.2")) implementations.push_back({"sse4.2", Sse42Crc});
#endif
  return implementations;
}

uint32_t Crc32c(std::string_view data) {
  static const Crc32cImplementation best = Crc32cImplementations().back();
  return best.crc(data);
}

uint32_t MaskedCrc32c(std::string_view data) { return std::rotr(Crc32c(data), 15) + kMaskDelta; }

}  // namespace ringmaster
