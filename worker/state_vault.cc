#include "worker/state_vault.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <numeric>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/sha256.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

constexpr uint64_t kMark = 0x31746c7561566d52;  // "RmVault1"

absl::Status ErrnoStatus(const std::string& what) { return absl::ErrnoToStatus(errno, what); }

absl::Status Damaged(const std::string& what) {
  return absl::DataLossError("the state that the former process left is damaged: " + what);
}

absl::Status WriteAt(int fd, uint64_t offset, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      const absl::Status status = ErrnoStatus("cannot keep the state in memory");
      // A memfd has no disk: "no space" is memory.
      return errno == ENOSPC || errno == ENOMEM ? absl::ResourceExhaustedError(status.message())
                                                : status;
    }
    bytes.remove_prefix(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
  return absl::OkStatus();
}

absl::Status ReadAt(int fd, uint64_t offset, char* bytes, size_t size) {
  while (size > 0) {
    const ssize_t count = pread(fd, bytes, size, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus("cannot read the state that the former process left");
    if (count == 0) return Damaged("it is cut off");
    bytes += count;
    offset += static_cast<uint64_t>(count);
    size -= static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

std::string_view Bytes(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

// In the order they lie in the file.
std::array<std::string_view, 4> Parts(const VaultedState& vaulted) {
  return {Bytes(vaulted.state.parameters), Bytes(vaulted.state.first_moment),
          Bytes(vaulted.state.second_moment), vaulted.records};
}

}  // namespace

struct StateVault::Header {
  static constexpr int kParts = 4;

  uint64_t mark = 0;  // kMark when all else is written
  uint64_t generation = 0;
  uint64_t position = 0;
  uint64_t step = 0;
  uint64_t sizes[kParts] = {};  // in bytes, of Parts()
  char sha256[64] = {};         // hex, of the fields above but the mark, and the parts

  static Header Of(const VaultedState& vaulted) {
    Header header;
    header.generation = vaulted.generation;
    header.position = vaulted.position;
    header.step = vaulted.state.step;
    const auto parts = Parts(vaulted);
    for (int i = 0; i < kParts; ++i) header.sizes[i] = parts[i].size();
    Sha256 digest;
    digest.Update(header.digested());
    for (const std::string_view part : parts) digest.Update(part);
    const std::string hex = digest.FinishHex();
    std::memcpy(header.sha256, hex.data(), sizeof header.sha256);
    return header;
  }

  // All but the mark.
  std::string_view body() const {
    return {reinterpret_cast<const char*>(this) + sizeof mark, sizeof *this - sizeof mark};
  }
  std::string_view digested() const {
    return body().substr(0, offsetof(Header, sha256) - sizeof mark);
  }
  uint64_t file_size() const {
    return std::accumulate(std::begin(sizes), std::end(sizes), uint64_t{sizeof *this});
  }
  // Before anything of those sizes is allocated.
  absl::Status CheckSizes(uint64_t file_size) const {
    uint64_t left = file_size - sizeof *this;
    for (int i = 0; i < kParts; ++i) {
      if (sizes[i] > left) return Damaged("it is cut off");
      if (i + 1 < kParts && sizes[i] % sizeof(float) != 0) return Damaged("a size is odd");
      left -= sizes[i];
    }
    return left == 0 ? absl::OkStatus() : Damaged(absl::StrCat(left, " bytes too many"));
  }
};

absl::StatusOr<StateVault> StateVault::Create() {
  UniqueFd fd(memfd_create("ringmaster-vault", MFD_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus("cannot make a file in memory");
  return StateVault(std::move(fd));
}

absl::StatusOr<StateVault> StateVault::Open(int fd) {
  if (fcntl(fd, F_GET_SEALS) < 0) {  // which only files in memory have
    return absl::InvalidArgumentError(absl::StrCat(
        "descriptor ", fd, " is not a vault: this command is for ringmaster-worker's own use"));
  }
  UniqueFd own(fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (!own.valid()) return ErrnoStatus("cannot copy the vault's descriptor");
  return StateVault(std::move(own));
}

absl::Status StateVault::Save(const VaultedState& vaulted) {
  const Header header = Header::Of(vaulted);
  Clear();
  if (ftruncate(fd_.get(), static_cast<off_t>(header.file_size())) != 0) {
    return ErrnoStatus("cannot size the vault");
  }
  uint64_t offset = sizeof header;
  for (const std::string_view part : Parts(vaulted)) {
    RM_RETURN_IF_ERROR(WriteAt(fd_.get(), offset, part));
    offset += part.size();
  }
  RM_RETURN_IF_ERROR(WriteAt(fd_.get(), sizeof header.mark, header.body()));
  const uint64_t mark = kMark;
  return WriteAt(fd_.get(), 0, {reinterpret_cast<const char*>(&mark), sizeof mark});
}

absl::StatusOr<std::optional<VaultedState>> StateVault::Load() {
  struct stat info;
  if (fstat(fd_.get(), &info) != 0) return ErrnoStatus("cannot look at the vault");
  const uint64_t size = static_cast<uint64_t>(info.st_size);
  Header header;
  if (size == 0) return std::nullopt;
  if (size < sizeof header) return Damaged("it is cut off");
  RM_RETURN_IF_ERROR(ReadAt(fd_.get(), 0, reinterpret_cast<char*>(&header), sizeof header));
  if (header.mark == 0) return std::nullopt;
  if (header.mark != kMark) return Damaged("its mark is wrong");
  RM_RETURN_IF_ERROR(header.CheckSizes(size));

  VaultedState vaulted{header.generation, header.position, {}, {}};
  vaulted.state.step = header.step;
  vaulted.state.parameters.resize(header.sizes[0] / sizeof(float));
  vaulted.state.first_moment.resize(header.sizes[1] / sizeof(float));
  vaulted.state.second_moment.resize(header.sizes[2] / sizeof(float));
  vaulted.records.resize(header.sizes[3]);
  uint64_t offset = sizeof header;
  for (const std::string_view part : Parts(vaulted)) {
    RM_RETURN_IF_ERROR(ReadAt(fd_.get(), offset, const_cast<char*>(part.data()), part.size()));
    offset += part.size();
  }
  const Header expected = Header::Of(vaulted);
  if (header.body() != expected.body()) return Damaged("its checksum does not match");
  return vaulted;
}

void StateVault::Clear() {
  // Shrinking takes no memory and cannot fail on a file of our own.
  if (ftruncate(fd_.get(), 0) != 0) std::abort();
}

}  // namespace ringmaster
