// Mailbox: what other threads want done on the thread that owns it, in the order of posting.
//
// Thread safety: Post() is safe from any thread; the rest is for the owner.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "common/mutex.h"
#include "common/unique_fd.h"

namespace ringmaster {

class Mailbox {
 public:
  Mailbox();

  void Post(std::function<void()> letter);
  // Takes what has been posted.
  std::vector<std::function<void()>> Take();
  // Readable while something is there to be taken.
  int fd() const { return wake_.get(); }

 private:
  UniqueFd wake_;  // an eventfd
  Mutex mutex_;
  std::vector<std::function<void()>> letters_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ringmaster
