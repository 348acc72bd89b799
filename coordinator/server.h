// Server: the coordinator's port: both services, the standard health service and reflection.
//
// Thread safety: none; for main().
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/dataset.h"
#include "coordinator/run.h"

namespace ringmaster {

class Server {
 public:
  // INVALID_ARGUMENT if `listen` ("HOST:PORT") is taken or not of this machine. Answers before
  // there is a run to serve, so that nothing of it needs to be taken back.
  static absl::Status CheckAddress(const std::string& listen);

  // Listens on `listen` ("HOST:PORT", port 0 picks a free one) and serves `run`, which it borrows.
  // INVALID_ARGUMENT: nobody can listen there (the port is taken, the address not ours).
  static absl::StatusOr<std::unique_ptr<Server>> Start(const std::string& listen, Run* run,
                                                       std::shared_ptr<const DatasetFiles> files);
  // Cuts off what is still going on.
  ~Server();

  // What a worker on this machine dials.
  const std::string& address() const { return address_; }
  // The same for people, with the host's name where it listens on all addresses.
  std::string public_address() const;

 private:
  class Impl;
  explicit Server(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
  std::string address_;
  bool wildcard_ = false;  // listens on every address of this machine
};

}  // namespace ringmaster
