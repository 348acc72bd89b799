#include "coordinator/recovery.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace ringmaster {
namespace {

// A state can be gone on from if training has passed through it, or is where it leads, and if the
// records up to it are here or come with it.
bool Usable(const Ledger& ledger, const StateOffer& offer) {
  return ledger.lineage().Contains(offer.generation, offer.position) &&
         offer.records_from <= ledger.size() && !offer.digest.empty();
}

absl::Status CheckAlike(const Ledger& ledger, const std::vector<StateOffer>& offers) {
  std::map<uint64_t, std::string> digests;
  for (const StateOffer& offer : offers) {
    const auto [at, is_new] = digests.try_emplace(offer.position, offer.digest);
    if (is_new || at->second == offer.digest) continue;
    return absl::DataLossError(absl::StrCat(
        "two states of ", DescribePosition(ledger.timeline(), offer.position),
        " differ: ", at->second, " and ", offer.digest,
        ": the ranks have not trained alike (different instruction sets? see --reproducible)"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RecoveryPlan> PlanRecovery(
    const Ledger& ledger,
    const std::vector<std::pair<MemberId, std::optional<StateOffer>>>& members,
    const std::optional<StateOffer>& stored) {
  RecoveryPlan plan;
  plan.reason = "from the beginning";
  std::vector<StateOffer> usable;
  if (stored && Usable(ledger, *stored) && stored->position <= ledger.size()) {
    usable.push_back(*stored);
    plan.position = stored->position;
    plan.digest = stored->digest;
    plan.reason = "with the state the coordinator holds";
  }
  for (const auto& [id, offer] : members) {
    if (!offer || !Usable(ledger, *offer)) continue;
    usable.push_back(*offer);
    const bool better = plan.digest.empty() || offer->position > plan.position;
    const bool as_good = offer->position == plan.position && !plan.holder;
    if (!better && !as_good) continue;
    plan.position = offer->position;
    plan.digest = offer->digest;
    plan.holder = id;
    plan.reason = "with the state of the most advanced worker";
  }
  RM_RETURN_IF_ERROR(CheckAlike(ledger, usable));
  if (plan.digest.empty() && ledger.base() > 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "nobody holds the state that this run was begun from, of ",
        DescribePosition(ledger.timeline(), ledger.base()), ": begin anew from its checkpoint"));
  }
  for (const auto& [id, offer] : members) {
    if (!plan.digest.empty() && (!offer || offer->digest != plan.digest)) plan.must_serve = true;
  }
  return plan;
}

}  // namespace ringmaster
