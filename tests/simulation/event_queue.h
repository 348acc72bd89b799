// EventQueue: what is going to happen in a simulation, in the order of its time.
//
// Nothing runs but what is queued, and time passes only from one event to the next. Events of the
// same time run in the order they were queued. Thread safety: none.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace ringmaster {

class EventQueue {
 public:
  absl::Time now() const { return now_; }
  // How much has happened.
  uint64_t count() const { return count_; }

  void After(absl::Duration delay, std::function<void()> what) {
    events_.push_back({now_ + delay, ++last_, std::move(what)});
    std::push_heap(events_.begin(), events_.end());
  }

  // Runs the next event. False when there is none.
  bool RunNext() {
    if (events_.empty()) return false;
    std::pop_heap(events_.begin(), events_.end());
    Event event = std::move(events_.back());
    events_.pop_back();
    now_ = event.time;
    ++count_;
    event.what();
    return true;
  }

 private:
  struct Event {
    absl::Time time;
    uint64_t number = 0;
    std::function<void()> what;

    // The heap has the greatest in front: the first to happen.
    friend bool operator<(const Event& a, const Event& b) {
      return a.time != b.time ? a.time > b.time : a.number > b.number;
    }
  };
  absl::Time now_ = absl::FromUnixSeconds(1'000'000'000);
  uint64_t last_ = 0;
  uint64_t count_ = 0;
  std::vector<Event> events_;
};

}  // namespace ringmaster
