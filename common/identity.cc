#include "common/identity.h"

#include <unistd.h>

#include <random>

namespace ringmaster {

std::string HostName() {
  char name[256] = "";  // HOST_NAME_MAX is 64
  gethostname(name, sizeof name - 1);
  return name[0] == '\0' ? "localhost" : name;
}

uint64_t RandomId() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

}  // namespace ringmaster
