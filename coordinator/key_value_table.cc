#include "coordinator/key_value_table.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace ringmaster {

void KeyValueTable::Begin(uint64_t generation) {
  std::map<Ticket, Waiter> ended;
  {
    MutexLock lock(&mutex_);
    generation_ = generation;
    values_.clear();
    total_bytes_ = 0;
    waiting_for_.clear();
    ended.swap(waiters_);
  }
  for (auto& [ticket, waiter] : ended) {
    waiter.answer(absl::FailedPreconditionError(
        absl::StrCat("the generation ended while waiting for key '", waiter.key, "'")));
  }
}

absl::Status KeyValueTable::Set(uint64_t generation, const std::string& key,
                                const std::string& value) {
  std::vector<Answer> answers;
  {
    MutexLock lock(&mutex_);
    RM_RETURN_IF_ERROR(CheckGeneration(generation));
    RM_RETURN_IF_ERROR(Store(key, value));
    const auto [begin, end] = waiting_for_.equal_range(key);
    for (auto at = begin; at != end; ++at) {
      answers.push_back(std::move(waiters_.extract(at->second).mapped().answer));
    }
    waiting_for_.erase(begin, end);
  }
  for (const Answer& answer : answers) answer(value);
  return absl::OkStatus();
}

absl::Status KeyValueTable::Store(const std::string& key, const std::string& value) {
  const auto found = values_.find(key);
  if (found != values_.end()) {
    if (found->second == value) return absl::OkStatus();
    return absl::AlreadyExistsError(absl::StrCat("key '", key, "' holds another value"));
  }
  if (key.size() > kMaxKeyBytes || value.size() > kMaxValueBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("a key of ", key.size(), " and a value of ",
                                                     value.size(), " bytes; the most are ",
                                                     kMaxKeyBytes, " and ", kMaxValueBytes));
  }
  if (values_.size() >= kMaxKeys || total_bytes_ + value.size() > kMaxTotalBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("generation ", generation_, " has ", values_.size(), " keys in ", total_bytes_,
                     " bytes; the most are ", kMaxKeys, " in ", kMaxTotalBytes));
  }
  total_bytes_ += value.size();
  values_[key] = value;
  return absl::OkStatus();
}

KeyValueTable::Ticket KeyValueTable::Get(uint64_t generation, const std::string& key,
                                         Answer answer) {
  absl::StatusOr<std::string> now;
  {
    MutexLock lock(&mutex_);
    const absl::Status status = CheckGeneration(generation);
    const auto found = values_.find(key);
    if (!status.ok()) {
      now = status;
    } else if (found != values_.end()) {
      now = found->second;
    } else if (waiters_.size() >= kMaxKeys || key.size() > kMaxKeyBytes) {
      now = absl::ResourceExhaustedError("too many wait for keys, or the key is too long");
    } else {
      const Ticket ticket = ++last_ticket_;
      waiters_[ticket] = {key, std::move(answer)};
      waiting_for_.emplace(key, ticket);
      return ticket;
    }
  }
  answer(std::move(now));
  return 0;
}

void KeyValueTable::Cancel(Ticket ticket) {
  Waiter waiter;
  {
    MutexLock lock(&mutex_);
    const auto found = waiters_.find(ticket);
    if (found == waiters_.end()) return;
    waiter = std::move(found->second);
    waiters_.erase(found);
    auto [at, end] = waiting_for_.equal_range(waiter.key);
    while (at != end && at->second != ticket) ++at;
    if (at != end) waiting_for_.erase(at);
  }
  waiter.answer(absl::CancelledError("nobody waits for the answer any more"));
}

absl::Status KeyValueTable::CheckGeneration(uint64_t generation) const {
  if (generation == generation_ && generation != 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("generation ", generation, " is not the current one, ", generation_));
}

}  // namespace ringmaster
