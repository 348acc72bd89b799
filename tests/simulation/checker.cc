#include "tests/simulation/checker.h"

#include "common/model.h"
#include "tests/simulation/sim_state.h"

namespace ringmaster {
namespace {

// The state that the ledger's records lead to.
uint64_t ChainAt(const Lineage& lineage, uint64_t position) {
  uint64_t chain = kInitialChain;
  for (uint64_t i = 0; i < position; ++i) chain = NextChain(chain, i, lineage.GenerationOf(i));
  return chain;
}

}  // namespace

void Checker::OnSent(uint64_t life, const CoordinatorMessage& message) {
  const uint64_t generation = message.generation();
  if (message.has_ack()) return Promise(generation, message.ack().records_received());
  if (message.has_welcome()) return Promise(generation, message.welcome().records_received());
  if (!message.has_assignment()) return;
  Promise(generation, message.assignment().records_received());
  if (!formed_.empty() && generation < formed_.rbegin()->first) {
    trace_->Violate("generation ", generation, " is assigned after ", formed_.rbegin()->first);
  }
  Assignment shared = message.assignment();
  shared.clear_rank();
  shared.clear_hand_in_state();
  const auto [found, is_new] = formed_.try_emplace(generation);
  if (is_new) found->second = {life, shared.SerializeAsString()};
  if (found->second.life != life || found->second.assignment != shared.SerializeAsString()) {
    trace_->Violate("generation ", generation, " is formed twice");
  }
}

void Checker::OnStep(uint64_t generation, uint32_t rank, uint64_t incarnation) {
  const auto [owner, is_new] = owners_.try_emplace({generation, rank}, incarnation);
  if (owner->second != incarnation) {
    trace_->Violate("rank ", rank, " of generation ", generation, " trains in two processes");
  }
}

void Checker::OnRestored(const RunState& state) {
  const auto [generation, records] = promised_;
  if (state.generation().generation() < generation) {
    trace_->Violate("a coordinator starts with generation ", state.generation().generation(),
                    ", but ", generation, " was told of before it died");
  } else if (state.generation().generation() == generation && state.ledger().size() < records) {
    trace_->Violate("a coordinator starts with ", state.ledger().size(), " records, but ", records,
                    " were acknowledged before it died");
  }
  checked_ = {};
  CheckLineage(state);
}

void Checker::OnTurn(const RunState& state) {
  if (checked_ != std::pair(state.generation().generation(), state.ledger().size())) {
    CheckLineage(state);
  }
}

void Checker::CheckLineage(const RunState& state) {
  const Ledger& ledger = state.ledger();
  checked_ = {state.generation().generation(), ledger.size()};
  uint64_t chain = kInitialChain;
  for (uint64_t i = 0; i < ledger.size(); ++i) {
    chain = NextChain(chain, i, ledger.lineage().GenerationOf(i));
    if (ledger.At(i).loss_sum_quanta() == chain) continue;
    trace_->Violate("record ", i, " is not what generation ", ledger.lineage().GenerationOf(i),
                    " computed");
    return;
  }
}

void Checker::OnSuccess(const RunState& state) {
  const Ledger& ledger = state.ledger();
  if (const auto audit = ledger.Audit(); !audit.status.ok()) {
    trace_->Violate("the run succeeded, but ", std::string(audit.status.message()));
  }
  if (!ledger.complete() || ledger.samples() != ledger.samples_expected()) {
    trace_->Violate("the run succeeded with ", ledger.samples(), " samples");
  }
  CheckLineage(state);
  const uint64_t chain = ChainAt(ledger.lineage(), ledger.timeline().end());
  if (!state.ended() || state.ended()->weights_sha256() != WeightsSha256(ChainParameters(chain))) {
    trace_->Violate("the final state is not what the ledger's records lead to");
  }
}

}  // namespace ringmaster
