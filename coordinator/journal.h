// Journal: what the coordinator must not forget, as a list of entries (opaque bytes) that only
// grows, after a snapshot that stands for all that came before. docs/journal.md tells the format
// and what each crash leaves.
//
// Thread safety: none; one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/unique_fd.h"

namespace ringmaster {

class Journal {
 public:
  virtual ~Journal() = default;

  // Adds an entry. It is in memory only; a crash may lose it or keep it.
  virtual void Append(std::string entry) = 0;

  // Makes everything appended so far durable: once this returns OK, and only then, no crash loses
  // it. After an error (the code of the failed system call) nothing is lost and nothing is
  // promised: what was appended is kept, and the next Commit tries again.
  virtual absl::Status Commit() = 0;

  // Whether something waits for a Commit.
  virtual bool pending() const = 0;

  // Starts anew with `snapshot`, which stands for everything appended so far, pending or not. OK:
  // it is durable and nothing is pending. After an error everything is as it was.
  virtual absl::Status Rotate(std::string snapshot) = 0;

  // Bytes since the start of the last snapshot, itself included: lets the owner decide when to
  // rotate.
  virtual uint64_t size() const = 0;
};

// A journal in a directory of its own, whose owner holds the run's lock (coordinator/run_lock.h).
class FileJournal : public Journal {
 public:
  // Opens the journal in `directory`, or makes both. `*entries` gets the snapshot (empty in a new
  // journal) and every entry since, all of them durable. A record that a crash cut short is cut
  // off, and `*note` then says so, for the log; otherwise it is empty.
  //
  // DATA_LOSS: a file has changed since it was written; the message names it, the place and what to
  // do, and nothing is changed on disk. Otherwise the code of the failed system call.
  static absl::StatusOr<std::unique_ptr<FileJournal>> Open(const std::string& directory,
                                                           std::vector<std::string>* entries,
                                                           std::string* note);

  void Append(std::string entry) override { pending_.push_back(std::move(entry)); }
  absl::Status Commit() override;
  bool pending() const override { return !pending_.empty(); }
  absl::Status Rotate(std::string snapshot) override;
  uint64_t size() const override { return end_; }

 private:
  explicit FileJournal(std::string directory) : directory_(std::move(directory)) {}

  struct Segment;

  // DATA_LOSS: damaged.
  static absl::StatusOr<Segment> ReadSegment(const std::string& directory, uint64_t number);
  std::string Path(uint64_t number) const;
  // Goes on at the end of `segment`, which has been read.
  absl::Status Continue(const Segment& segment, std::string* note);
  // Goes on in a new segment that holds `entries`, the first of them the snapshot.
  absl::Status StartSegment(const std::vector<std::string>& entries);
  // What is durable, and what is pending, in a new segment: the present file is not to be trusted.
  absl::Status MoveToNewSegment();
  // Removes the files of former segments and of writers that died. As far as that goes.
  void RemoveOthers() const;

  const std::string directory_;
  uint64_t segment_ = 0;  // the present one
  uint64_t newest_ = 0;   // the largest number ever tried
  UniqueFd file_;
  uint64_t end_ = 0;    // bytes of file_ that are durable
  uint64_t count_ = 0;  // entries in them, the snapshot included
  std::string link_;    // the checksum of the last record of them
  // file_ may not be written to any more: a sync of it failed, or a newer segment may be on disk.
  bool broken_ = false;
  std::vector<std::string> pending_;
};

// A journal in memory, for tests and simulation.
class MemoryJournal : public Journal {
 public:
  // How much of a disk it is: kLies forgets to sync, which a test that crashes must notice.
  enum class Disk { kHonest, kLies };

  explicit MemoryJournal(Disk disk = Disk::kHonest) : disk_(disk) {}

  void Append(std::string entry) override { pending_.push_back(std::move(entry)); }
  absl::Status Commit() override;
  bool pending() const override { return !pending_.empty(); }
  absl::Status Rotate(std::string snapshot) override;
  uint64_t size() const override;

  // Commit and Rotate return `status`, and do nothing, until it is OK again: a full disk.
  void Fail(absl::Status status) { failure_ = std::move(status); }

  // The power goes: what was not made durable is gone. Returns what FileJournal::Open would find.
  std::vector<std::string> Crash();

 private:
  const Disk disk_;
  absl::Status failure_;
  std::vector<std::string> durable_ = {std::string()};  // the snapshot, and the entries since
  std::vector<std::string> cached_;                     // said to be durable by a disk that lies
  std::vector<std::string> pending_;
};

}  // namespace ringmaster
