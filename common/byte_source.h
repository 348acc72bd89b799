// The bytes of a stored file, plain or unpacked from gzip as they are asked for, so that the reader
// bounds the memory and not the file.
//
// Thread safety: a source belongs to one thread at a time. The stored bytes must outlive it.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/status/statusor.h"

namespace ringmaster {

class ByteSource {
 public:
  virtual ~ByteSource() = default;

  // Writes the next `count` bytes to `to`; fewer only where the bytes end. Returns how many.
  // INVALID_ARGUMENT: the gzip stream is corrupt, cut off or followed by something else; the
  // message says which. After an error the source is of no more use.
  virtual absl::StatusOr<uint64_t> Read(uint8_t* to, uint64_t count) = 0;

  // No more bytes than this can come from the whole source.
  virtual uint64_t limit() const = 0;
};

// gzip (RFC 1952) if `gzip`; one after the other where there are several members.
std::unique_ptr<ByteSource> OpenByteSource(std::string_view stored, bool gzip);

}  // namespace ringmaster
