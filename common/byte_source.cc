#include "common/byte_source.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace ringmaster {
namespace {

// Deflate (RFC 1951) spends at least two bits on at most 258 bytes.
constexpr uint64_t kMaxExpansion = 1032;
// zlib counts in 32 bits.
constexpr uint64_t kMaxPiece = uint64_t{1} << 30;
constexpr int kGzipOnly = 16 + MAX_WBITS;  // inflateInit2's way of asking for gzip, not zlib

class PlainSource : public ByteSource {
 public:
  explicit PlainSource(std::string_view stored) : left_(stored), limit_(stored.size()) {}

  absl::StatusOr<uint64_t> Read(uint8_t* to, uint64_t count) override {
    const uint64_t take = std::min<uint64_t>(count, left_.size());
    if (take > 0) std::memcpy(to, left_.data(), take);
    left_.remove_prefix(take);
    return take;
  }

  uint64_t limit() const override { return limit_; }

 private:
  std::string_view left_;
  uint64_t limit_;
};

absl::Status Corrupt(const char* why) {
  return absl::InvalidArgumentError(absl::StrCat("the gzip stream is corrupt: ", why));
}

class GzipSource : public ByteSource {
 public:
  explicit GzipSource(std::string_view stored)
      : left_(stored), limit_(kMaxExpansion * stored.size()) {
    ready_ = inflateInit2(&stream_, kGzipOnly) == Z_OK;
  }
  ~GzipSource() override {
    if (ready_) inflateEnd(&stream_);
  }
  GzipSource(const GzipSource&) = delete;
  GzipSource& operator=(const GzipSource&) = delete;

  absl::StatusOr<uint64_t> Read(uint8_t* to, uint64_t count) override {
    if (!ready_) return absl::ResourceExhaustedError("no memory to unpack gzip");
    uint64_t filled = 0;
    while (filled < count && !ended_) {
      const auto got = Inflate(to + filled, count - filled);
      if (!got.ok()) return got.status();
      filled += *got;
    }
    return filled;
  }

  uint64_t limit() const override { return limit_; }

 private:
  // One call of zlib. Returns how many bytes it wrote, maybe none.
  absl::StatusOr<uint64_t> Inflate(uint8_t* to, uint64_t count) {
    const uInt in = static_cast<uInt>(std::min<uint64_t>(left_.size(), kMaxPiece));
    const uInt out = static_cast<uInt>(std::min(count, kMaxPiece));
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(left_.data()));
    stream_.avail_in = in;
    stream_.next_out = to;
    stream_.avail_out = out;
    const int result = inflate(&stream_, Z_NO_FLUSH);
    left_.remove_prefix(in - stream_.avail_in);
    const uint64_t written = out - stream_.avail_out;
    if (result == Z_STREAM_END) {
      const absl::Status status = EndMember();
      if (!status.ok()) return status;
    } else if (result == Z_BUF_ERROR) {  // no progress though there is room: the input is used up
      return absl::InvalidArgumentError("the gzip stream is cut off");
    } else if (result != Z_OK) {
      return Corrupt(stream_.msg != nullptr ? stream_.msg : zError(result));
    }
    return written;
  }

  absl::Status EndMember() {
    ended_ = left_.empty();
    if (ended_) return absl::OkStatus();
    if (!left_.starts_with("\x1F\x8B")) {
      return Corrupt("something that is not gzip comes after it");
    }
    return inflateReset(&stream_) == Z_OK ? absl::OkStatus() : Corrupt("cannot start over");
  }

  z_stream stream_ = {};
  std::string_view left_;
  uint64_t limit_;
  bool ready_ = false;
  bool ended_ = false;  // after the last member
};

}  // namespace

std::unique_ptr<ByteSource> OpenByteSource(std::string_view stored, bool gzip) {
  if (gzip) return std::make_unique<GzipSource>(stored);
  return std::make_unique<PlainSource>(stored);
}

}  // namespace ringmaster
