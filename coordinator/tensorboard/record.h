// The framing of TensorBoard's event files (TFRecord). One record is
//   uint64  length of the data              little-endian, as all numbers here
//   uint32  masked CRC-32C of those 8 bytes
//   bytes   data
//   uint32  masked CRC-32C of the data
#pragma once

#include <string>
#include <string_view>

namespace ringmaster::tensorboard {

// Appends `data` as one record to `out`.
void AppendRecord(std::string_view data, std::string* out);

}  // namespace ringmaster::tensorboard
