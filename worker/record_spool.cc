#include "worker/record_spool.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ringmaster {

void RecordSpool::Add(GlobalRecord record) {
  const size_t bytes = record.ByteSizeLong();
  entries_.push_back({std::move(record), bytes});
  bytes_ += bytes;
  DropSafe();
}

void RecordSpool::Acknowledge(uint64_t received) {
  received_ = std::max(received_, received);
  DropSafe();
}

void RecordSpool::ResumeAt(uint64_t position, uint64_t received) {
  received_ = received;
  if (position < begin_ || position > end()) {
    Clear(position);
    return;
  }
  while (end() > position) {
    bytes_ -= entries_.back().bytes;
    entries_.pop_back();
  }
  DropSafe();
}

absl::Status RecordSpool::CheckFrom(uint64_t first) const {
  if (first >= begin_) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat("the coordinator wants the records from ", first,
                                            " on, but this process holds only [", begin_, ", ",
                                            end(), "): [", first, ", ", begin_, ") are lost"));
}

StepRecords RecordSpool::From(uint64_t first, size_t max_records, size_t max_bytes) const {
  StepRecords records;
  size_t bytes = 0;
  const uint64_t last = std::min(end(), first + max_records);
  for (uint64_t i = std::max(first, begin_); i < last && bytes < max_bytes; ++i) {
    const Entry& entry = entries_[i - begin_];
    *records.add_records() = entry.record;
    bytes += entry.bytes;
  }
  return records;
}

void RecordSpool::DropSafe() {
  while (!entries_.empty() && begin_ < received_) {
    bytes_ -= entries_.front().bytes;
    entries_.pop_front();
    ++begin_;
  }
}

void RecordSpool::Clear(uint64_t next) {
  entries_.clear();
  bytes_ = 0;
  begin_ = next;
}

}  // namespace ringmaster
