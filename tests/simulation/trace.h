// Trace: what happened last in a simulation, in words, and what was found to be wrong.
//
// Thread safety: none.
#pragma once

#include <cstddef>
#include <deque>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "tests/simulation/event_queue.h"

namespace ringmaster {

class Trace {
 public:
  // Keeps the last `lines`; with 0 nothing is put into words, which takes most of the time.
  Trace(const EventQueue* queue, size_t lines)
      : queue_(queue), start_(queue->now()), lines_(lines) {}

  template <typename... Parts>
  void Note(const Parts&... parts) {
    if (lines_ == 0) return;
    const double seconds = absl::ToDoubleSeconds(queue_->now() - start_);
    last_.push_back(absl::StrFormat("%9.4f s  ", seconds) + absl::StrCat(parts...));
    if (last_.size() > lines_) last_.pop_front();
  }
  // The first counts: what follows is its consequence.
  template <typename... Parts>
  void Violate(const Parts&... parts) {
    if (!violation_.empty()) return;
    violation_ = absl::StrCat(parts...);
    Note("VIOLATED: ", violation_);
  }

  bool verbose() const { return lines_ > 0; }
  bool violated() const { return !violation_.empty(); }
  const std::string& violation() const { return violation_; }
  const std::deque<std::string>& last() const { return last_; }

 private:
  const EventQueue* const queue_;
  const absl::Time start_;
  const size_t lines_;
  std::deque<std::string> last_;
  std::string violation_;
};

}  // namespace ringmaster
