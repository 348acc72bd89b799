// Whole files: read with a bound, written so that a crash leaves the old file or the new one.
//
// Thread safety: safe from any thread; concurrent writers of one path leave the bytes of one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ringmaster {

inline constexpr uint64_t kMaxReadBytes = uint64_t{4} << 30;

// Returns the bytes of the file at `path`. NOT_FOUND: there is none. RESOURCE_EXHAUSTED: it has
// more than `max_bytes`. Other errors of the file system keep their code. The message names `path`.
absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes = kMaxReadBytes);

// Replaces the file at `path` with `bytes`: a new file beside it is written, synced to disk and
// renamed over it, so that no reader and no crash ever sees a part of it. When this fails, the old
// file is untouched and nothing is left behind. Errors of the file system keep their code
// (NOT_FOUND: the directory is missing); the message names `path`.
absl::Status WriteFileAtomically(const std::string& path, std::string_view bytes);

// Makes what was created, renamed and removed in `directory` last through a power cut. The code of
// the failed system call.
absl::Status SyncDirectory(const std::string& directory);

}  // namespace ringmaster
