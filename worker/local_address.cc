#include "worker/local_address.h"

#include <netdb.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/subprocess.h"

namespace ringmaster {
namespace {

absl::StatusOr<std::string> SourceAddress(const addrinfo& target) {
  const UniqueFd fd(socket(target.ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd.valid() || connect(fd.get(), target.ai_addr, target.ai_addrlen) != 0) {
    return absl::UnavailableError(std::strerror(errno));
  }
  sockaddr_storage local{};
  socklen_t size = sizeof local;
  char text[NI_MAXHOST];
  if (getsockname(fd.get(), reinterpret_cast<sockaddr*>(&local), &size) != 0 ||
      getnameinfo(reinterpret_cast<sockaddr*>(&local), size, text, sizeof text, nullptr, 0,
                  NI_NUMERICHOST) != 0) {
    return absl::UnavailableError("its local address cannot be read");
  }
  return std::string(text);
}

}  // namespace

absl::StatusOr<std::string> LocalAddressTowards(const std::string& address) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (host.starts_with("[") && host.ends_with("]")) host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* raw = nullptr;
  const int error = getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &raw);
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat("host ", host, ": ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> targets(raw, &freeaddrinfo);
  absl::StatusOr<std::string> result = absl::UnavailableError("no address");
  for (const addrinfo* target = raw; target != nullptr && !result.ok(); target = target->ai_next) {
    result = SourceAddress(*target);
  }
  if (result.ok()) return result;
  return absl::UnavailableError(
      absl::StrCat("no route to ", address, ": ", std::string(result.status().message())));
}

}  // namespace ringmaster
