// The safetensors format (https://github.com/huggingface/safetensors), fp32 tensors only:
//   8 bytes   length of the header, little-endian
//   header    JSON: {name: {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}, ...},
//             padded with spaces so that the data begin at a multiple of 8; the name __metadata__
//             is not a tensor's: it has an object of strings
//   data      little-endian, row-major; the tensors cover it without gap or overlap
//
// Thread safety: pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace ringmaster {

// A tensor to write. `values` has as many elements as `shape` says and must outlive the call.
struct TensorView {
  std::string name;
  std::vector<int64_t> shape;
  std::span<const float> values;
};

// A tensor that was read; `values` has as many elements as `shape` says.
struct Tensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// What `__metadata__` says: strings by name, with no meaning to the format itself.
using SafetensorsMetadata = std::map<std::string, std::string>;

// A file that was read.
struct Safetensors {
  std::vector<Tensor> tensors;  // in the order of their data
  SafetensorsMetadata metadata;
};

// Returns the file for `tensors`, whose data come in the order given. Names must differ, and none
// may be "__metadata__". The header has no metadata when there are none.
std::string EncodeSafetensors(const std::vector<TensorView>& tensors,
                              const SafetensorsMetadata& metadata = {});

// Takes a file apart. Safe for bytes from anywhere. INVALID_ARGUMENT: not safetensors, damaged, or
// a tensor that is not fp32; the message says what was wanted and got.
absl::StatusOr<Safetensors> DecodeSafetensors(std::string_view bytes);

}  // namespace ringmaster
