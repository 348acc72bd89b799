#include "worker/data_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "proto/training.pb.h"

namespace ringmaster {
namespace {

constexpr int kSeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
constexpr uint64_t kMaxHeader = 1 << 20;

absl::Status WriteAll(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = write(fd, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return absl::ErrnoToStatus(errno, "cannot keep the data set in memory");
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

absl::Status Damaged(const std::string& what) {
  return absl::DataLossError("the data set inherited from the agent is damaged: " + what);
}

// A read-only mapping of a whole file.
class Mapping {
 public:
  Mapping(int fd, size_t size) : size_(size) {
    void* memory = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
    if (memory != MAP_FAILED) data_ = static_cast<const char*>(memory);
  }
  ~Mapping() {
    if (data_ != nullptr) munmap(const_cast<char*>(data_), size_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  bool valid() const { return data_ != nullptr; }
  std::string_view bytes() const { return {data_, size_}; }

 private:
  const char* data_ = nullptr;
  size_t size_;
};

absl::StatusOr<DataFile> Parse(std::string_view bytes) {
  uint64_t header_size = 0;
  if (bytes.size() < sizeof header_size) return Damaged("no header");
  std::memcpy(&header_size, bytes.data(), sizeof header_size);
  bytes.remove_prefix(sizeof header_size);
  DatasetChunk header;
  if (header_size > kMaxHeader || header_size > bytes.size() ||
      !header.ParseFromArray(bytes.data(), static_cast<int>(header_size)) ||
      header.files_size() != kDatasetFiles) {
    return Damaged("its header cannot be read");
  }
  bytes.remove_prefix(header_size);
  DataFile data{header.run_id(), header.data_digest(), {}};
  for (int i = 0; i < kDatasetFiles; ++i) {
    const DatasetFileInfo& info = header.files(i);
    if (info.size() > bytes.size()) return Damaged(info.name() + " is cut off");
    data.files[i] = {info.name(), std::string(bytes.substr(0, info.size())), info.sha256()};
    bytes.remove_prefix(info.size());
  }
  if (!bytes.empty()) return Damaged(absl::StrCat(bytes.size(), " bytes too many"));
  return data;
}

}  // namespace

absl::StatusOr<UniqueFd> MakeDataFile() {
  UniqueFd fd(memfd_create("ringmaster-data", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return absl::ErrnoToStatus(errno, "cannot make a file in memory");
  return fd;
}

absl::Status WriteDataFile(int fd, const DataFile& data) {
  DatasetChunk header;
  header.set_run_id(data.run_id);
  header.set_data_digest(data.digest);
  for (const DatasetFile& file : data.files) {
    DatasetFileInfo* info = header.add_files();
    info->set_name(file.name);
    info->set_size(file.bytes.size());
    info->set_sha256(file.sha256);
  }
  const std::string text = header.SerializeAsString();
  const uint64_t size = text.size();
  char prefix[sizeof size];
  std::memcpy(prefix, &size, sizeof size);
  RM_RETURN_IF_ERROR(WriteAll(fd, {prefix, sizeof prefix}));
  RM_RETURN_IF_ERROR(WriteAll(fd, text));
  for (const DatasetFile& file : data.files) RM_RETURN_IF_ERROR(WriteAll(fd, file.bytes));
  if (fcntl(fd, F_ADD_SEALS, kSeals) != 0)
    return absl::ErrnoToStatus(errno, "cannot seal the data");
  return absl::OkStatus();
}

absl::StatusOr<DataFile> ReadDataFile(int fd) {
  if ((fcntl(fd, F_GET_SEALS) & kSeals) != kSeals) {
    return absl::FailedPreconditionError(
        absl::StrCat("descriptor ", fd,
                     " is not a sealed data set: this command is for "
                     "ringmaster-worker's own use"));
  }
  struct stat info;
  if (fstat(fd, &info) != 0) return absl::ErrnoToStatus(errno, "cannot read the data set");
  const Mapping mapping(fd, static_cast<size_t>(info.st_size));
  if (!mapping.valid()) return absl::ErrnoToStatus(errno, "cannot map the data set");
  return Parse(mapping.bytes());
}

}  // namespace ringmaster
