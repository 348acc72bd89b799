// Fetches the data set from the coordinator.
//
// Thread safety: plain functions.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/training.grpc.pb.h"
#include "worker/data_file.h"

namespace ringmaster {

// One GetDataset call. With `local` (files of this machine, or null) nothing is sent if the
// coordinator's set is the same; `local` is then what comes back. Every digest is checked.
// UNAVAILABLE: the coordinator cannot be reached. DATA_LOSS: what arrived is not what its digests
// say. RESOURCE_EXHAUSTED: a file above 4 GiB is announced.
absl::StatusOr<DataFile> FetchDataset(Training::StubInterface* stub, const DatasetFiles* local,
                                      absl::Duration timeout);

}  // namespace ringmaster
