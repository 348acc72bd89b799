// What each process of a node is doing, for the agent to tell when one dies: a page of shared
// memory, since a killed process cannot say anything any more.
//
// Thread safety: the notes are atomic; a ProcessNotes may be moved, but not while it is used.
#pragma once

#include <atomic>
#include <cstdint>

#include "absl/status/statusor.h"
#include "common/subprocess.h"

namespace ringmaster {

// -1: not known yet.
struct ProcessNote {
  std::atomic<int32_t> rank;
  std::atomic<int32_t> world_size;
  std::atomic<int32_t> epoch;
  std::atomic<int32_t> step;
};

// A mapping of one note per process of the node.
class ProcessNotes {
 public:
  // For the agent: new memory. Codes: those of memfd_create and mmap.
  static absl::StatusOr<ProcessNotes> Create(int num_processes);
  // For a process: maps what the agent made. INVALID_ARGUMENT: it is too small.
  static absl::StatusOr<ProcessNotes> Open(int fd, int num_processes);
  ProcessNotes(ProcessNotes&& other) noexcept;
  ProcessNotes& operator=(ProcessNotes&&) = delete;
  ~ProcessNotes();

  int fd() const { return fd_.get(); }
  ProcessNote& operator[](int local_rank) { return notes_[local_rank]; }
  // As new: for the agent, before it starts the next process of that local rank.
  void Forget(int local_rank);

 private:
  ProcessNotes(UniqueFd fd, ProcessNote* notes, int size);
  static absl::StatusOr<ProcessNotes> Map(UniqueFd fd, int num_processes);

  UniqueFd fd_;
  ProcessNote* notes_ = nullptr;
  int size_ = 0;
};

}  // namespace ringmaster
