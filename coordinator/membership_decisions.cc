// What Membership decides: when a generation can begin, who is lost, what ends it.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/membership.h"

namespace ringmaster {

Membership::Decision Membership::Decide(absl::Time now) {
  ForgiveOwnPause(now);
  Decision decision;
  if (phase_ == Phase::kTraining) DecideTraining(now, &decision);
  if (phase_ == Phase::kGathering) DecideGathering(now, &decision);
  return decision;
}

void Membership::ForgiveOwnPause(absl::Time now) {
  const absl::Duration pause = now - std::exchange(last_decision_, now);
  if (pause <= options_.largest_gap) return;
  for (auto& [id, member] : members_) member.last_heard = std::min(now, member.last_heard + pause);
  progress_deadline_ += pause;
  stand_deadline_ += pause;
  if (alone_since_) *alone_since_ += pause;
}

void Membership::DecideGathering(absl::Time now, Decision* decision) {
  DropSilent(now);
  if (phase_ != Phase::kGathering) return;
  const bool pending = Pending(now, decision);
  if (phase_ != Phase::kGathering) return;
  const Muster muster = TakeMuster();
  // Who stopped at an agreed step waits for nobody: those to come are here.
  const bool agreed = !ranks_.empty() && !aborting_;
  const bool settled = agreed || muster.full || now - last_change_ >= options_.settle;
  if (!pending && muster.enough && settled) {
    decision->can_form = true;
    return;
  }
  if (generation_ == 0 && now >= join_deadline_) {
    return Fail(absl::StrCat("waited ", absl::FormatDuration(options_.join_timeout), " for ",
                             Wanted(), ": ", WhoIsHere(muster)));
  }
  reason_ = absl::StrCat(
      generation_ == 0 ? ""
                       : absl::StrCat("generation ", generation_, " is over (", why_over_, "): "),
      pending ? "its members are stopping" : WaitingFor(muster));
}

void Membership::DropSilent(absl::Time now) {
  std::vector<MemberId> silent;
  for (const auto& [id, member] : members_) {
    if (member.connected && now - member.last_heard > options_.patience) silent.push_back(id);
  }
  for (const MemberId id : silent) {
    if (AtWork(id)) {
      NoteTrouble(absl::StrCat(Describe(id), " fell silent"), absl::InfinitePast());
    }
    Remove(now, id, "no heartbeat came");
  }
}

// Whether members of the former generation may still stand by. Those who take too long are removed.
bool Membership::Pending(absl::Time now, Decision* decision) {
  std::vector<MemberId> late;
  bool pending = false;
  for (const MemberId id : ranks_) {
    const auto found = members_.find(id);
    if (found == members_.end() || found->second.standing) continue;
    const bool in_grace = alone_since_ && now < *alone_since_ + options_.reconnect_grace();
    if (!found->second.connected && !in_grace) {
      late.push_back(id);
    } else if (found->second.connected && now >= stand_deadline_) {
      if (aborting_) late.push_back(id);
      pending = pending || !aborting_;
    } else {
      pending = true;
    }
  }
  for (const MemberId id : late) {
    const MemberState& member = members_.at(id);
    if (AtWork(id)) {
      NoteTrouble(absl::StrCat(Describe(id), " ", member.how), absl::InfinitePast());
    }
    Remove(now, id, member.connected ? "it did not stop when told to: it hangs" : member.how);
  }
  if (pending && !aborting_ && now >= stand_deadline_) {
    NoteTrouble("a member did not stop at the agreed step", absl::InfinitePast());
  }
  if (!trouble_ || aborting_) return pending;
  if (TroubleIsClear(now)) Break(now, std::string(trouble_->first), decision);
  return true;
}

void Membership::DecideTraining(absl::Time now, Decision* decision) {
  if (CheckFinished()) return;
  if (!InGrace(now)) FindLost(now);
  if (TroubleIsClear(now)) {
    return Break(now, std::string(trouble_->first), decision);
  }
  if (trouble_ || alone_since_) return;
  if (now >= progress_deadline_) {
    return Break(now,
                 absl::StrCat("no step was finished for ",
                              absl::FormatDuration(progressed_ ? hang_limit_ : options_.warm_up)),
                 decision);
  }
  CheckRegroup(now, decision);
}

// True when the run is over, well or not.
bool Membership::CheckFinished() {
  CompareDigests();
  if (phase_ == Phase::kFailed) return true;
  bool all = !final_digest_.empty();
  for (const MemberId id : ranks_) {
    const auto found = members_.find(id);
    // Who is gone has nothing to add once the end is safe.
    if (found == members_.end() || !found->second.connected) continue;
    all = all && found->second.finished.has_value();
  }
  if (!all) return false;
  state_digest_ = final_digest_;
  phase_ = Phase::kFinished;
  reason_ = ranks_.size() == 1 ? "the worker finished"
                               : absl::StrCat("all ", ranks_.size(), " workers finished");
  return true;
}

// All ranks, and what was handed in, must have come to the same end.
void Membership::CompareDigests() {
  std::map<std::string, std::vector<uint32_t>> ranks_by_digest;
  for (uint32_t rank = 0; rank < ranks_.size(); ++rank) {
    const auto found = members_.find(ranks_[rank]);
    if (found == members_.end() || !found->second.finished) continue;
    ranks_by_digest[*found->second.finished].push_back(rank);
  }
  if (ranks_by_digest.size() == 1 && !final_digest_.empty() &&
      ranks_by_digest.begin()->first != final_digest_) {
    return Fail(absl::StrCat("the workers finished with state ", ranks_by_digest.begin()->first,
                             ", but handed in ", final_digest_));
  }
  if (ranks_by_digest.size() < 2) return;
  std::vector<std::string> parts;
  for (const auto& [digest, ranks] : ranks_by_digest) {
    parts.push_back(absl::StrCat(ranks.size() == 1 ? "rank " : "ranks ", absl::StrJoin(ranks, ", "),
                                 ": ", digest));
  }
  Fail(absl::StrCat("the ranks ended with different weights (", absl::StrJoin(parts, "; "), ")"));
}

bool Membership::Alive(absl::Time now, const MemberState& member) const {
  return member.connected && now - member.last_heard <= options_.patience / 2;
}

// While nobody is there it may be our own trouble: whoever comes back in time has lost nothing.
bool Membership::InGrace(absl::Time now) {
  bool anybody = false;
  bool everybody = true;
  for (const MemberId id : ranks_) {
    const auto found = members_.find(id);
    const bool alive = found != members_.end() && Alive(now, found->second);
    anybody = anybody || alive;
    everybody = everybody && alive;
  }
  if (!alone_since_) {
    if (anybody) return false;
    alone_since_ = now;
    reason_ = absl::StrCat("no worker answers: giving them ",
                           absl::FormatDuration(options_.reconnect_grace()), " to come back");
  }
  if (!everybody && now < *alone_since_ + options_.reconnect_grace()) return true;
  if (everybody) reason_ = absl::StrCat("all workers of generation ", generation_, " are back");
  alone_since_.reset();
  // Only from here on is a step due again.
  progress_deadline_ = std::max(progress_deadline_, now + hang_limit_);
  return false;
}

void Membership::FindLost(absl::Time now) {
  std::vector<std::pair<MemberId, std::string>> lost;
  for (const MemberId id : ranks_) {
    const auto found = members_.find(id);
    if (found == members_.end()) continue;
    const MemberState& member = found->second;
    const absl::Duration silence = now - member.last_heard;
    if (!member.connected && now - member.disconnected_at >= options_.confirmation) {
      lost.push_back({id, member.how});
    } else if (member.connected && silence > options_.patience) {
      lost.push_back(
          {id, absl::StrCat("has been silent for ",
                            absl::FormatDuration(absl::Trunc(silence, absl::Milliseconds(100))))});
    }
  }
  for (const auto& [id, how] : lost) {
    NoteTrouble(absl::StrCat(Describe(id), " ", how), absl::InfinitePast());
    Remove(now, id, absl::StrCat("it ", how));
  }
}

void Membership::CheckRegroup(absl::Time now, Decision* decision) {
  if (regroup_asked_ || (regroup_wanted_.empty() && !NewcomersWait(now))) return;
  for (const MemberId id : ranks_) {
    const auto found = members_.find(id);
    if (found == members_.end() || !found->second.connected || found->second.finished) continue;
    decision->regroup = id;
    regroup_asked_ = true;
    return;
  }
}

// There is room for whoever has joined: Join() has seen to that.
bool Membership::NewcomersWait(absl::Time now) const {
  if (now - last_change_ < options_.settle) return false;
  for (const Node& node : Nodes()) {
    if (!options_.workers.given() && !node.complete()) continue;
    for (const MemberId id : node.standing) {
      if (!RankOf(id)) return true;
    }
  }
  return false;
}

void Membership::Break(absl::Time now, const std::string& reason, Decision* decision) {
  decision->broken = Broken{reason, progressed_, now};
  decision->abort = true;
  trouble_.reset();
  if (!CountFailure(reason, progressed_)) return;
  BeginGathering(now, /*aborting=*/true, options_.patience);
  why_over_ = reason;
  reason_ = absl::StrCat("generation ", generation_, " is over (", reason, ")");
}

// False if that was one too many.
bool Membership::CountFailure(const std::string& reason, bool progressed) {
  ++failures_;
  if (progressed || fruitless_ == 0) {
    fruitless_ = 0;
    first_cause_ = reason;
  }
  ++fruitless_;
  if (options_.max_failures >= 0 && failures_ > static_cast<uint32_t>(options_.max_failures)) {
    Fail(options_.max_failures == 0
             ? reason
             : absl::StrCat("more than ", options_.max_failures,
                            options_.max_failures == 1 ? " failure" : " failures",
                            " (--max-failures); the last: ", reason));
    return false;
  }
  if (fruitless_ >= options_.fruitless_limit) {
    Fail(absl::StrCat(fruitless_,
                      " failures in a row without a step between them; the first: ", first_cause_));
    return false;
  }
  return true;
}

void Membership::BeginGathering(absl::Time now, bool aborting, absl::Duration patience) {
  phase_ = Phase::kGathering;
  aborting_ = aborting;
  stand_deadline_ = now + patience;
  last_change_ = now;
}

// Whether it takes part in a generation whose collectives the others may be waiting in.
bool Membership::AtWork(MemberId id) const {
  const bool works = phase_ == Phase::kTraining || (phase_ == Phase::kGathering && !aborting_);
  return works && RankOf(id) && !members_.at(id).standing;
}

// The first counts, but a loss (since the infinite past) before what others say that follows from
// it.
void Membership::NoteTrouble(const std::string& reason, absl::Time since) {
  if (!trouble_ || (since == absl::InfinitePast() && trouble_->second != since)) {
    trouble_ = {reason, since};
  }
}

// Whether the cause of the trouble has had its time to show up.
bool Membership::TroubleIsClear(absl::Time now) const {
  return trouble_ && now - trouble_->second >= 2 * options_.confirmation;
}

void Membership::Remove(absl::Time now, MemberId id, const std::string& why) {
  members_.erase(id);
  gone_[id] = why;
  last_change_ = now;
}

}  // namespace ringmaster
