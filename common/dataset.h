// An image classification data set in memory, and its decoding from the four IDX files of MNIST.
//
// Anything in the same format works: image size and class count come from the files. Pixels stay
// uint8. The IDX format (LeCun): big-endian; magic 0x00000801 (labels) or 0x00000803 (images), one
// 32-bit size per dimension, then the bytes.
//
// Thread safety: immutable after decoding; safe to share.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace ringmaster {

// One split. Images: [num_samples, rows * columns], row-major, 0..255.
struct DatasetSplit {
  std::vector<uint8_t> images;
  std::vector<uint8_t> labels;  // [num_samples], each below Dataset::num_classes
  uint32_t num_samples = 0;
};

struct Dataset {
  DatasetSplit train;
  DatasetSplit test;
  int rows = 0;
  int columns = 0;
  int num_classes = 0;  // largest label of either split + 1

  int pixels() const { return rows * columns; }
};

// The four files, in the order everything uses: train images, train labels, test images, test
// labels.
inline constexpr int kDatasetFiles = 4;
// File names without ".gz"; a directory may hold either form.
inline constexpr std::array<const char*, kDatasetFiles> kDatasetFileNames = {
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte"};

// The files as stored, gzip or plain.
struct DatasetFile {
  std::string name;    // as found, with ".gz" if compressed
  std::string bytes;   // as stored
  std::string sha256;  // of `bytes`, lower-case hex
};
using DatasetFiles = std::array<DatasetFile, kDatasetFiles>;

// Identifies a data set: SHA-256 over the four "sha256  name\n" lines.
std::string DatasetDigest(const DatasetFiles& files);

// Reads the four files from `directory` (the one with ".gz" where both forms are there) and, if it
// holds a SHA256SUMS, checks them against it. NOT_FOUND: a file is missing. DATA_LOSS: a digest
// does not match, or SHA256SUMS leaves the file out. INVALID_ARGUMENT: SHA256SUMS is not one. Other
// errors of the file system keep their code. Every message names the file and what to do.
absl::StatusOr<DatasetFiles> ReadDatasetFiles(const std::string& directory);

// Unpacks and checks the files. INVALID_ARGUMENT: wrong magic, type or dimensions; truncated or
// trailing bytes; image and label counts that differ; a split without samples; train and test
// images of different sizes or of more pixels than ModelSpec::kMaxWidth; a test label beyond the
// largest training label; a gzip stream that is corrupt or holds more than its IDX header promises
// (memory stays bounded by the header's promise, itself at most 4 GiB).
absl::StatusOr<Dataset> DecodeDataset(const DatasetFiles& files);

}  // namespace ringmaster
