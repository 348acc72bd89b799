#include "coordinator/tensorboard/record.h"

#include <cstdint>

#include "coordinator/tensorboard/crc32c.h"

namespace ringmaster::tensorboard {
namespace {

template <typename Integer>
void AppendLittleEndian(Integer value, std::string* out) {
  for (size_t i = 0; i < sizeof value; ++i) {
    out->push_back(static_cast<char>(static_cast<uint8_t>(value >> (8 * i))));
  }
}

}  // namespace

void AppendRecord(std::string_view data, std::string* out) {
  std::string length;
  AppendLittleEndian(uint64_t{data.size()}, &length);
  out->append(length);
  AppendLittleEndian(MaskedCrc32c(length), out);
  out->append(data);
  AppendLittleEndian(MaskedCrc32c(data), out);
}

}  // namespace ringmaster::tensorboard
