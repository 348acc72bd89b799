// The safetensors format (https://github.com/huggingface/safetensors), fp32 tensors only:
//   8 bytes   length of the header, little-endian
//   header    JSON: {name: {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}, ...},
//             padded with spaces so that the data begin at a multiple of 8
//   data      little-endian, row-major; the tensors cover it without gap or overlap
//
// Thread safety: pure functions.
#pragma once

#include <cstdint>
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

// Returns the file for `tensors`, whose data come in the order given. Names must differ.
std::string EncodeSafetensors(const std::vector<TensorView>& tensors);

// Takes a file apart; the tensors come in the order of their data. Safe for bytes from anywhere.
// INVALID_ARGUMENT: not safetensors, damaged, or a tensor that is not fp32; the message says what
// was wanted and got.
absl::StatusOr<std::vector<Tensor>> DecodeSafetensors(std::string_view bytes);

}  // namespace ringmaster
