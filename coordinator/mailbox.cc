#include "coordinator/mailbox.h"

#include <sys/eventfd.h>
#include <unistd.h>

namespace ringmaster {

Mailbox::Mailbox() : wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

void Mailbox::Post(std::function<void()> letter) {
  MutexLock lock(&mutex_);
  letters_.push_back(std::move(letter));
  if (letters_.size() == 1) eventfd_write(wake_.get(), 1);
}

std::vector<std::function<void()>> Mailbox::Take() {
  MutexLock lock(&mutex_);
  eventfd_t count = 0;
  eventfd_read(wake_.get(), &count);
  return std::exchange(letters_, {});
}

}  // namespace ringmaster
