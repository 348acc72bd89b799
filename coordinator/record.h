// The framing of TensorBoard's event files (TFRecord), which the journal uses too. One record is
//   uint64  length of the data              little-endian, as all numbers here
//   uint32  masked CRC-32C of those 8 bytes
//   bytes   data
//   uint32  masked CRC-32C of the data
//
// Files of records only ever grow, so a crash leaves whole records and at most one that is torn.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace ringmaster {

// Appends `data` as one record to `out`.
void AppendRecord(std::string_view data, std::string* out);

// What follows the last whole record of a file.
enum class RecordEnd {
  kClean,    // nothing
  kTorn,     // a record that a crash cut short: safe to cut off
  kDamaged,  // bytes that were written whole and have changed since
};

// Reads the records of a file, one by one.
//
// A record is torn if the file ends before it does, or if it does not match its checksums and is
// zero up to the file's end, from its own start or from the start of a sector: a file system that
// has made room for data but lost it in a power cut shows zeros.
//
// Memory: one record. Its length is believed only if its checksum matches and the file is as long.
// Thread safety: one thread at a time. The file must not change meanwhile.
class RecordReader {
 public:
  static constexpr uint64_t kSectorBytes = 512;

  // The code of the failed system call.
  static absl::StatusOr<RecordReader> Open(const std::string& path);

  // Reads the next record to `*data`; false where they end. The code of a read that failed.
  absl::StatusOr<bool> Next(std::string* data);

  // The end of the last record that was read: the length of the file that is good.
  uint64_t offset() const { return offset_; }
  // The four bytes that end that record: the checksum of its data.
  const std::string& checksum() const { return checksum_; }
  // How the records end. Meaningful once Next has returned false.
  RecordEnd end() const { return end_; }
  uint64_t file_size() const { return size_; }

 private:
  struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  RecordReader(std::string path, std::FILE* file, uint64_t size)
      : path_(std::move(path)), file_(file), size_(size) {}

  absl::Status Read(uint64_t count, std::string* bytes);
  // The record at offset_ does not match; `bytes` is its length as far as that is known.
  absl::StatusOr<RecordEnd> Judge(uint64_t bytes);
  absl::Status Error() const;

  std::string path_;
  std::unique_ptr<std::FILE, Closer> file_;
  uint64_t size_;
  uint64_t offset_ = 0;
  std::string checksum_;
  RecordEnd end_ = RecordEnd::kClean;
};

}  // namespace ringmaster
