#include "coordinator/record.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/crc32c.h"

namespace ringmaster {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kChecksumBytes = 4;
constexpr uint64_t kHeaderBytes = kLengthBytes + kChecksumBytes;
constexpr uint64_t kScanBytes = uint64_t{1} << 16;

template <typename Integer>
void AppendLittleEndian(Integer value, std::string* out) {
  for (size_t i = 0; i < sizeof value; ++i) {
    out->push_back(static_cast<char>(static_cast<uint8_t>(value >> (8 * i))));
  }
}

uint64_t LittleEndian(std::string_view bytes) {
  uint64_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

bool Matches(std::string_view data, std::string_view checksum) {
  return MaskedCrc32c(data) == LittleEndian(checksum);
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

absl::StatusOr<RecordReader> RecordReader::Open(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rbe");
  if (file == nullptr) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
  RecordReader reader(path, file, 0);
  struct stat info;
  if (fstat(fileno(file), &info) != 0) return reader.Error();
  reader.size_ = static_cast<uint64_t>(info.st_size);
  return reader;
}

absl::StatusOr<bool> RecordReader::Next(std::string* data) {
  const uint64_t left = size_ - offset_;
  if (left < kHeaderBytes) {
    end_ = left == 0 ? RecordEnd::kClean : RecordEnd::kTorn;
    return false;
  }
  std::string header;
  RM_RETURN_IF_ERROR(Read(kHeaderBytes, &header));
  const std::string_view length_bytes = std::string_view(header).substr(0, kLengthBytes);
  if (!Matches(length_bytes, std::string_view(header).substr(kLengthBytes))) {
    RM_ASSIGN_OR_RETURN(end_, Judge(kHeaderBytes));
    return false;
  }
  const uint64_t length = LittleEndian(length_bytes);
  if (left - kHeaderBytes < kChecksumBytes || length > left - kHeaderBytes - kChecksumBytes) {
    end_ = RecordEnd::kTorn;
    return false;
  }
  RM_RETURN_IF_ERROR(Read(length, data));
  std::string checksum;
  RM_RETURN_IF_ERROR(Read(kChecksumBytes, &checksum));
  const uint64_t bytes = kHeaderBytes + length + kChecksumBytes;
  if (!Matches(*data, checksum)) {
    RM_ASSIGN_OR_RETURN(end_, Judge(bytes));
    return false;
  }
  offset_ += bytes;
  checksum_ = std::move(checksum);
  return true;
}

absl::StatusOr<RecordEnd> RecordReader::Judge(uint64_t bytes) {
  if (std::fseek(file_.get(), static_cast<long>(offset_), SEEK_SET) != 0) return Error();
  uint64_t zeros_from = offset_;
  std::string chunk;
  for (uint64_t at = offset_; at < size_; at += chunk.size()) {
    RM_RETURN_IF_ERROR(Read(std::min(kScanBytes, size_ - at), &chunk));
    const size_t last = chunk.find_last_not_of('\0');
    if (last != std::string::npos) zeros_from = at + last + 1;
  }
  if (zeros_from == offset_) return RecordEnd::kTorn;
  const uint64_t sector = (zeros_from + kSectorBytes - 1) / kSectorBytes * kSectorBytes;
  return sector < offset_ + bytes ? RecordEnd::kTorn : RecordEnd::kDamaged;
}

absl::Status RecordReader::Read(uint64_t count, std::string* bytes) {
  bytes->resize(count);
  if (std::fread(bytes->data(), 1, count, file_.get()) == count) return absl::OkStatus();
  if (std::ferror(file_.get()) != 0) return Error();
  return absl::AbortedError(absl::StrCat(path_, " became shorter while it was read"));
}

absl::Status RecordReader::Error() const {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path_));
}

}  // namespace ringmaster
