#include "coordinator/recovery.h"

#include "absl/strings/str_cat.h"

namespace ringmaster {
namespace {

// A state can be gone on from if training has passed through it, or is where it leads, and if the
// records up to it are here or come with it.
bool Usable(const Ledger& ledger, const StateOffer& offer) {
  return ledger.lineage().Contains(offer.generation, offer.position) &&
         offer.records_from <= ledger.size();
}

}  // namespace

absl::StatusOr<RecoveryPlan> PlanRecovery(
    const Ledger& ledger,
    const std::vector<std::pair<MemberId, std::optional<StateOffer>>>& members,
    const std::optional<StateOffer>& stored) {
  RecoveryPlan plan;
  plan.reason = "from the beginning";
  if (stored && Usable(ledger, *stored) && stored->position <= ledger.size()) {
    plan.position = stored->position;
    plan.digest = stored->digest;
    plan.reason = "with the state the coordinator holds";
  }
  for (const auto& [id, offer] : members) {
    if (!offer || !Usable(ledger, *offer) || offer->digest.empty()) continue;
    const bool better = offer->position > plan.position || plan.digest.empty();
    if (!better && offer->position < plan.position) continue;
    if (!better && offer->digest != plan.digest) {
      return absl::DataLossError(absl::StrCat(
          "two states of ", DescribePosition(ledger.timeline(), plan.position),
          " differ: ", plan.digest, " and ", offer->digest,
          ": the ranks have not trained alike (different instruction sets? see --reproducible)"));
    }
    if (!better && plan.holder) continue;
    plan.position = offer->position;
    plan.digest = offer->digest;
    plan.holder = id;
    plan.reason = "with the state of the most advanced worker";
  }
  for (const auto& [id, offer] : members) {
    if (!plan.digest.empty() && (!offer || offer->digest != plan.digest)) plan.must_serve = true;
  }
  return plan;
}

}  // namespace ringmaster
