#include "worker/fetch.h"

#include <unistd.h>

#include <optional>
#include <utility>

#include "common/credentials.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "worker/data_file.h"
#include "worker/dataset_client.h"
#include "worker/retry.h"

namespace ringmaster {
namespace {

constexpr absl::Duration kCallTimeout = absl::Seconds(120);

absl::Status Fetch(const Settings& settings, const DatasetFiles* local) {
  const auto stub = Training::NewStub(MakeChannel(settings.coordinator));
  DataFile data;
  RM_RETURN_IF_ERROR(
      RetryUntil(settings.join_timeout, "reach the coordinator at " + settings.coordinator,
                 static_cast<uint64_t>(getpid()), RetryClock::Real(), [&]() -> absl::Status {
                   RM_ASSIGN_OR_RETURN(data, FetchDataset(stub.get(), local, kCallTimeout));
                   return absl::OkStatus();
                 }));
  if (local != nullptr && data.digest != DatasetDigest(*local)) {
    spdlog::warn("{} holds another data set than the run's; fetched that from the coordinator",
                 settings.data_dir);
  }
  return WriteDataFile(settings.data_fd, data);
}

}  // namespace

int RunFetch(const Settings& settings) {
  std::optional<DatasetFiles> local;
  if (!settings.data_dir.empty()) {
    auto files = ReadDatasetFiles(settings.data_dir);
    if (!files.ok()) {
      LogError(files.status());
      return 2;
    }
    local = *std::move(files);
  }
  const absl::Status status = Fetch(settings, local ? &*local : nullptr);
  if (status.ok()) return 0;
  LogError(status);
  return 1;
}

}  // namespace ringmaster
