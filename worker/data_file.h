// The data set on its way from the agent to its processes: one sealed memfd that all inherit.
//
// Layout: the length of a header (8 bytes, little-endian), the header (a serialized DatasetChunk
// with run id, digest and file infos, without data), then the bytes of the four files as stored.
// Sealed against every change before anyone reads it.
//
// Thread safety: plain functions on a file that nobody else uses.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/dataset.h"
#include "common/subprocess.h"

namespace ringmaster {

struct DataFile {
  std::string run_id;  // of the coordinator it came from
  std::string digest;  // DatasetDigest(files)
  DatasetFiles files;
};

// An empty memfd that can be sealed. Codes: those of memfd_create.
absl::StatusOr<UniqueFd> MakeDataFile();

// Writes and seals. Codes: those of the file system; RESOURCE_EXHAUSTED when memory is short.
absl::Status WriteDataFile(int fd, const DataFile& data);

// FAILED_PRECONDITION: not sealed. DATA_LOSS: not what WriteDataFile wrote.
absl::StatusOr<DataFile> ReadDataFile(int fd);

}  // namespace ringmaster
