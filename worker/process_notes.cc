#include "worker/process_notes.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

size_t Bytes(int num_processes) { return static_cast<size_t>(num_processes) * sizeof(ProcessNote); }

}  // namespace

absl::StatusOr<ProcessNotes> ProcessNotes::Create(int num_processes) {
  UniqueFd fd(memfd_create("ringmaster-notes", MFD_CLOEXEC));
  if (!fd.valid()) return absl::ErrnoToStatus(errno, "cannot make shared memory");
  if (ftruncate(fd.get(), static_cast<off_t>(Bytes(num_processes))) != 0) {
    return absl::ErrnoToStatus(errno, "cannot size shared memory");
  }
  RM_ASSIGN_OR_RETURN(ProcessNotes notes, Map(std::move(fd), num_processes));
  for (int i = 0; i < num_processes; ++i) notes.Forget(i);
  return notes;
}

void ProcessNotes::Forget(int local_rank) {
  ProcessNote& note = notes_[local_rank];
  for (auto* value : {&note.rank, &note.world_size, &note.epoch, &note.step}) value->store(-1);
}

absl::StatusOr<ProcessNotes> ProcessNotes::Open(int fd, int num_processes) {
  struct stat info;
  if (fstat(fd, &info) != 0) return absl::ErrnoToStatus(errno, "cannot read the agent's notes");
  if (info.st_size < static_cast<off_t>(Bytes(num_processes))) {
    return absl::InvalidArgumentError(absl::StrCat("the agent's notes have ", info.st_size,
                                                   " bytes, too few for ", num_processes,
                                                   " processes"));
  }
  return Map(UniqueFd(fcntl(fd, F_DUPFD_CLOEXEC, 3)), num_processes);
}

absl::StatusOr<ProcessNotes> ProcessNotes::Map(UniqueFd fd, int num_processes) {
  void* memory =
      mmap(nullptr, Bytes(num_processes), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (memory == MAP_FAILED) return absl::ErrnoToStatus(errno, "cannot map shared memory");
  return ProcessNotes(std::move(fd), static_cast<ProcessNote*>(memory), num_processes);
}

ProcessNotes::ProcessNotes(UniqueFd fd, ProcessNote* notes, int size)
    : fd_(std::move(fd)), notes_(notes), size_(size) {}

ProcessNotes::ProcessNotes(ProcessNotes&& other) noexcept
    : fd_(std::move(other.fd_)),
      notes_(std::exchange(other.notes_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

ProcessNotes::~ProcessNotes() {
  if (notes_ != nullptr) munmap(notes_, Bytes(size_));
}

}  // namespace ringmaster
