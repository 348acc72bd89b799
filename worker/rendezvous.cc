#include "worker/rendezvous.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/gloo_communicator.h"
#include "worker/solo_communicator.h"

namespace ringmaster {
namespace {

constexpr char kNcclKey[] = "nccl/unique-id";

absl::StatusOr<std::unique_ptr<Communicator>> RendezvousNccl(const RendezvousOptions& options) {
  const CudaModule& cuda = *options.device->cuda;
  NcclOptions nccl;
  // A fresh id for each generation, made in rank 0's process: it starts a listening thread there.
  if (options.rank == 0) {
    RM_ASSIGN_OR_RETURN(nccl.unique_id, cuda.create_nccl_unique_id());
    RM_RETURN_IF_ERROR(options.store->Set(kNcclKey, nccl.unique_id));
  } else {
    RM_ASSIGN_OR_RETURN(nccl.unique_id, options.store->Get(kNcclKey, options.timeout));
  }
  nccl.rank = options.rank;
  nccl.world_size = options.world_size;
  nccl.device = options.device->ordinal;
  nccl.stream = options.backend->stream();
  nccl.timeout = options.timeout;
  nccl.interrupt = options.interrupt;
  return cuda.create_nccl_communicator(nccl);
}

absl::StatusOr<std::unique_ptr<Communicator>> RendezvousGloo(const RendezvousOptions& options) {
  GlooCommunicator::Options gloo;
  gloo.rank = options.rank;
  gloo.world_size = options.world_size;
  gloo.store = options.store;
  gloo.listen_address = options.listen_address;
  gloo.timeout = options.timeout;
  gloo.interrupt = options.interrupt;
  return GlooCommunicator::Create(gloo);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> Rendezvous(const RendezvousOptions& options) {
  if (options.world_size == 1) return std::make_unique<SoloCommunicator>();
  auto communicator =
      options.device->cuda != nullptr ? RendezvousNccl(options) : RendezvousGloo(options);
  // Whatever the interrupted call made of it.
  if (!communicator.ok() && options.interrupt != nullptr && options.interrupt->triggered()) {
    return absl::AbortedError(
        absl::StrCat("rendezvous interrupted: ", communicator.status().message()));
  }
  return communicator;
}

}  // namespace ringmaster
