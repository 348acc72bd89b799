// NetworkCut: cuts one process of this host off from the network: its packets are dropped both
// ways, those of its connections of today and of any it makes later.
//
// By nftables, in a table of its own that belongs to the process that loaded it: the table goes
// with that process, so no rule stays behind however this program ends, SIGKILL included.
// Connections there are when the cut begins are matched by their local ports, later ones by the
// cgroup (version 2) that the process is moved to meanwhile.
//
// Thread safety: for one thread.
#pragma once

#include <sys/types.h>

#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/subprocess.h"

namespace ringmaster {

class NetworkCut {
 public:
  // Returns once packets are dropped. FAILED_PRECONDITION: it cannot be done here (no root, no nft,
  // ...), with the reason.
  static absl::StatusOr<NetworkCut> Start(pid_t pid);
  NetworkCut(NetworkCut&&) = default;
  NetworkCut& operator=(NetworkCut&&) = default;
  // Connects the process again, unless moved from.
  ~NetworkCut();

 private:
  NetworkCut(Child helper, UniqueFd lifeline)
      : helper_(std::move(helper)), lifeline_(std::move(lifeline)) {}

  Child helper_;
  UniqueFd lifeline_;  // the helper's standard input: its end is the end of the cut
};

}  // namespace ringmaster
