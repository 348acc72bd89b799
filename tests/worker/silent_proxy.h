// A TCP proxy that can fall silent: it keeps its connections open and passes nothing on any more,
// as a network that drops every packet.
//
// Thread safety: safe from several threads.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "common/unique_fd.h"

namespace ringmaster {

class SilentProxy {
 public:
  // Passes on to `port` of loopback.
  explicit SilentProxy(int port) : target_(port) {
    listener_ = UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address = Loopback(0);
    socklen_t length = sizeof address;
    bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), length);
    listen(listener_.get(), 16);
    getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &length);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { Run(); });
  }
  ~SilentProxy() {
    stopping_ = true;
    thread_.join();
  }

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  // From now on nothing passes, and new connections are not answered; until `false`, when those of
  // before are dropped.
  void SetSilent(bool silent) { silent_ = silent; }

 private:
  struct Pair {
    UniqueFd ends[2];
  };

  static sockaddr_in Loopback(int port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port));
    return address;
  }

  void Run() {
    bool was_silent = false;
    while (!stopping_) {
      const bool silent = silent_;
      if (was_silent && !silent) pairs_.clear();
      was_silent = silent;
      std::vector<pollfd> polled = {{listener_.get(), POLLIN, 0}};
      for (const Pair& pair : pairs_) {
        for (const UniqueFd& end : pair.ends) polled.push_back({end.get(), POLLIN, 0});
      }
      poll(polled.data(), silent ? 0 : polled.size(), 10);
      if (silent) continue;
      if (polled[0].revents != 0) Accept();
      for (size_t i = (polled.size() - 1) / 2; i-- > 0;) {
        if (!Pass(&pairs_[i], polled[1 + 2 * i].revents, polled[2 + 2 * i].revents)) {
          pairs_.erase(pairs_.begin() + static_cast<std::ptrdiff_t>(i));
        }
      }
    }
  }

  void Accept() {
    Pair pair;
    pair.ends[0] = UniqueFd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    pair.ends[1] = UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_in address = Loopback(target_);
    connect(pair.ends[1].get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
    pairs_.push_back(std::move(pair));
  }

  static bool Pass(Pair* pair, int first, int second) {
    const int events[] = {first, second};
    for (int i = 0; i < 2; ++i) {
      if (events[i] == 0) continue;
      char bytes[16384];
      const ssize_t count = read(pair->ends[i].get(), bytes, sizeof bytes);
      if (count <= 0 || write(pair->ends[1 - i].get(), bytes, count) != count) return false;
    }
    return true;
  }

  const int target_;
  int port_ = 0;
  UniqueFd listener_;
  std::atomic<bool> silent_{false};
  std::atomic<bool> stopping_{false};
  std::vector<Pair> pairs_;
  std::thread thread_;
};

}  // namespace ringmaster
