// RecordSpool: the records of a rank's finished steps, from the last one known to be safe with the
// coordinator on. Any rank may have to send them.
//
// A record's place in it is its index in the run's timeline. Thread safety: for one thread at a
// time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

#include "absl/status/status.h"
#include "proto/training.pb.h"

namespace ringmaster {

class RecordSpool {
 public:
  // Records take the bytes of their messages.
  explicit RecordSpool(size_t max_bytes) : max_bytes_(max_bytes) {}

  // [begin, end) is what it holds; `end` is the index of the next record.
  uint64_t begin() const { return begin_; }
  uint64_t end() const { return begin_ + entries_.size(); }
  size_t bytes() const { return bytes_; }
  // No more should be added until something is acknowledged. Adding is possible all the same.
  bool full() const { return bytes_ >= max_bytes_; }

  // Adds the record of index end().
  void Add(GlobalRecord record);
  // Records before `received` are safe: they are forgotten, also those that come later.
  void Acknowledge(uint64_t received);
  // Training goes on at `position`: records from there on are of work that was lost. Empty if
  // `position` lies beyond what it holds. `received` as Acknowledge(), and here it may also go
  // back.
  void ResumeAt(uint64_t position, uint64_t received);
  // Forgets all it holds; the next record is that of index `next`.
  void Clear(uint64_t next);
  // OUT_OF_RANGE, with the gap, if records from `first` on are wanted and it lacks some before
  // end().
  absl::Status CheckFrom(uint64_t first) const;
  // The records from `first` (at least begin()) on, at least one if there is one, and no more than
  // `max_records` or about `max_bytes`.
  StepRecords From(uint64_t first, size_t max_records, size_t max_bytes) const;

 private:
  struct Entry {
    GlobalRecord record;
    size_t bytes = 0;
  };

  void DropSafe();

  const size_t max_bytes_;
  uint64_t begin_ = 0;
  uint64_t received_ = 0;
  size_t bytes_ = 0;
  std::deque<Entry> entries_;
};

}  // namespace ringmaster
