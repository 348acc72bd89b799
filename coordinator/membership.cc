#include "coordinator/membership.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "common/step_tail.h"

namespace ringmaster {
namespace {

constexpr size_t kMaxTextBytes = 1024;

std::string Counted(uint64_t count, const std::string& noun) {
  return absl::StrCat(count, " ", noun, count == 1 ? "" : "s");
}

std::string DeviceName(DeviceKind device) { return device == CUDA ? "CUDA" : "CPU"; }

// `ready` complete nodes or workers, and nodes of which some processes are missing.
std::string WhoIsHere(uint64_t ready, const std::vector<std::string>& partial) {
  const std::string parts = absl::StrJoin(partial, ", ");
  if (ready == 0) return partial.empty() ? "nobody is here" : absl::StrCat(parts, " so far");
  const std::string whole = absl::StrCat(ready, ready == 1 ? " is here" : " are here");
  return partial.empty() ? whole : absl::StrCat(whole, ", and ", parts);
}

absl::Status CheckForm(const Hello& hello) {
  for (const std::string* text :
       {&hello.node_id(), &hello.host(), &hello.device_description(), &hello.version(),
        &hello.data_digest(), &hello.listen_address()}) {
    if (text->size() > kMaxTextBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("hello: a text of ", text->size(), " bytes; the most is ", kMaxTextBytes));
    }
  }
  if (hello.node_id().empty()) return absl::InvalidArgumentError("hello: node_id is missing");
  if (hello.device() != CPU && hello.device() != CUDA) {
    return absl::InvalidArgumentError(
        absl::StrCat("hello: unknown device kind ", static_cast<int>(hello.device())));
  }
  if (hello.local_world_size() > static_cast<uint32_t>(tail::kMaxWorldSize) ||
      hello.local_rank() >= hello.local_world_size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "hello: local rank ", hello.local_rank(), " of ", hello.local_world_size(),
        "; wanted one below the number of processes, of which at most ", tail::kMaxWorldSize));
  }
  return absl::OkStatus();
}

}  // namespace

Membership::Membership(MembershipOptions options, absl::Time now)
    : options_(std::move(options)),
      join_deadline_(now + options_.join_timeout),
      last_decision_(now) {
  if (!options_.workers.given() && !options_.nodes.given()) options_.nodes = {1, 1};
  reason_ = absl::StrCat("waiting for ", Wanted(), ": nobody is here");
}

absl::Status Membership::Join(absl::Time now, MemberId id, const Hello& hello) {
  RM_RETURN_IF_ERROR(CheckForm(hello));
  if (hello.version() != options_.version) {
    return absl::FailedPreconditionError(
        absl::StrCat("the coordinator has version ", options_.version, ", this process has ",
                     hello.version(), ": start the same version everywhere"));
  }
  if (hello.data_digest() != options_.data_digest) {
    return absl::FailedPreconditionError(absl::StrCat("the run trains on data set ",
                                                      options_.data_digest, ", this process has ",
                                                      hello.data_digest()));
  }
  if (phase_ == Phase::kFinished || phase_ == Phase::kFailed) {
    return absl::FailedPreconditionError(absl::StrCat("the run is over: ", reason_));
  }
  if (phase_ == Phase::kTraining) {
    return absl::ResourceExhaustedError(absl::StrCat("the run has all its members: ", reason_));
  }
  RM_RETURN_IF_ERROR(CheckPeers(hello));
  RM_RETURN_IF_ERROR(CheckRoom(hello));
  members_[id] = MemberState{hello, now, false, false, ""};
  last_join_ = now;
  return absl::OkStatus();
}

absl::Status Membership::CheckPeers(const Hello& hello) const {
  for (const auto& [id, member] : members_) {
    const Hello& other = member.hello;
    if (other.device() != hello.device()) {
      return absl::FailedPreconditionError(
          absl::StrCat("this process computes on ", DeviceName(hello.device()), ", ", Describe(id),
                       " on ", DeviceName(other.device()), ": start all with the same --backend"));
    }
    if (other.node_id() != hello.node_id()) continue;
    if (other.local_world_size() != hello.local_world_size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("hello: node ", hello.node_id(), " announced ", other.local_world_size(),
                       " processes before, now ", hello.local_world_size()));
    }
    if (other.local_rank() != hello.local_rank()) continue;
    if (other.incarnation() == hello.incarnation()) {
      return absl::UnavailableError("the former session of this process has not ended yet");
    }
    return absl::InvalidArgumentError(absl::StrCat("hello: local rank ", hello.local_rank(),
                                                   " of node ", hello.node_id(), " is ",
                                                   Describe(id), " already"));
  }
  return absl::OkStatus();
}

absl::Status Membership::CheckRoom(const Hello& hello) const {
  uint64_t nodes = 0;
  uint64_t processes = 0;
  for (const auto& [id, member] : members_) {
    if (member.hello.node_id() == hello.node_id()) return absl::OkStatus();
  }
  for (const Node& node : Nodes()) {
    ++nodes;
    processes += node.size;
  }
  const bool count_workers = options_.workers.given();
  const uint64_t before = count_workers ? processes : nodes;
  const uint64_t added = count_workers ? hello.local_world_size() : 1;
  if (before + added > static_cast<uint64_t>(wanted().max)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the run takes ", Wanted(), "; ", before, " joined before, this node brings ",
                     Counted(added, count_workers ? "worker" : "node")));
  }
  if (processes + hello.local_world_size() > static_cast<uint64_t>(tail::kMaxWorldSize)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a run takes at most ", tail::kMaxWorldSize, " processes"));
  }
  return absl::OkStatus();
}

void Membership::Heard(absl::Time now, MemberId id) {
  const auto found = members_.find(id);
  if (found != members_.end()) found->second.last_heard = now;
}

void Membership::Failed(absl::Time now, MemberId id, const Failure& failure) {
  const auto found = members_.find(id);
  if (found == members_.end()) return;
  found->second.failed = true;
  if (phase_ == Phase::kWaiting) members_.erase(found);
  if (phase_ != Phase::kTraining) return;
  const std::string reason = absl::StrCat(Describe(id), ": ", failure.message());
  if (!failure.consequence()) {
    Fail(reason);
  } else if (consequence_.empty()) {
    consequence_ = reason;
    consequence_holds_ = now + options_.cause_wait;
  }
}

void Membership::Lost(MemberId id, const std::string& how) {
  const auto found = members_.find(id);
  if (found == members_.end()) return;
  if (phase_ == Phase::kTraining && !found->second.failed) {
    Fail(absl::StrCat(Describe(id), " ", how));
  }
  // A rank keeps its place for the report.
  if (phase_ == Phase::kWaiting) members_.erase(found);
}

void Membership::Finished(MemberId id, const std::string& state_digest) {
  const auto found = members_.find(id);
  if (found == members_.end()) return;
  found->second.finished = true;
  found->second.state_digest = state_digest;
}

Membership::Phase Membership::Decide(absl::Time now) {
  ForgiveOwnPause(now);
  if (phase_ == Phase::kWaiting) DecideWaiting(now);
  if (phase_ == Phase::kTraining) DecideTraining(now);
  return phase_;
}

void Membership::ForgiveOwnPause(absl::Time now) {
  const absl::Duration pause = now - std::exchange(last_decision_, now);
  if (pause <= options_.largest_gap) return;
  for (auto& [id, member] : members_) member.last_heard = std::min(now, member.last_heard + pause);
  if (consequence_holds_ != absl::InfiniteFuture()) consequence_holds_ += pause;
}

void Membership::DecideWaiting(absl::Time now) {
  std::vector<MemberId> silent;
  for (const auto& [id, member] : members_) {
    if (now - member.last_heard > options_.heartbeat_timeout) silent.push_back(id);
  }
  for (const MemberId id : silent) members_.erase(id);

  const std::vector<Node> nodes = Nodes();
  uint64_t ready = 0;
  std::vector<std::string> partial;
  for (const Node& node : nodes) {
    if (node.complete()) {
      ready += options_.workers.given() ? node.size : 1;
    } else {
      partial.push_back(
          absl::StrCat(node.members.size(), " of ", node.size, " processes of host ", node.host));
    }
  }

  const bool enough = partial.empty() && ready >= static_cast<uint64_t>(wanted().min);
  const bool full = ready >= static_cast<uint64_t>(wanted().max);
  if (enough && (full || now - last_join_ >= options_.settle)) {
    Form(nodes);
  } else if (now >= join_deadline_) {
    Fail(absl::StrCat("waited ", absl::FormatDuration(options_.join_timeout), " for ", Wanted(),
                      ": ", WhoIsHere(ready, partial)));
  } else if (enough) {
    reason_ = absl::StrCat("waiting a moment for more than the ", ready, " that are here");
  } else {
    reason_ = absl::StrCat("waiting for ", Wanted(), ": ", WhoIsHere(ready, partial));
  }
}

void Membership::Form(const std::vector<Node>& nodes) {
  ranks_.clear();
  for (const Node& node : nodes) {
    std::vector<MemberId> members = node.members;
    std::sort(members.begin(), members.end(), [this](MemberId a, MemberId b) {
      return hello(a).local_rank() < hello(b).local_rank();
    });
    ranks_.insert(ranks_.end(), members.begin(), members.end());
  }
  ++generation_;
  phase_ = Phase::kTraining;
  reason_ = absl::StrCat("generation ", generation_, " trains with ",
                         Counted(ranks_.size(), "worker"), " on ", Counted(nodes.size(), "node"));
}

void Membership::DecideTraining(absl::Time now) {
  bool all_finished = true;
  for (const MemberId id : ranks_) {
    const MemberState& member = members_.at(id);
    all_finished = all_finished && member.finished;
    const absl::Duration silence = now - member.last_heard;
    if (silence > options_.heartbeat_timeout && !member.failed) {
      return Fail(absl::StrCat(Describe(id), " has been silent for ",
                               absl::FormatDuration(absl::Trunc(silence, absl::Milliseconds(100))),
                               ": its process hangs, or its host cannot be reached"));
    }
  }
  if (now >= consequence_holds_) return Fail(consequence_);
  if (all_finished) CompareDigests();
}

void Membership::CompareDigests() {
  std::map<std::string, std::vector<size_t>> ranks_by_digest;
  for (size_t rank = 0; rank < ranks_.size(); ++rank) {
    ranks_by_digest[members_.at(ranks_[rank]).state_digest].push_back(rank);
  }
  if (ranks_by_digest.size() > 1) {
    std::vector<std::string> parts;
    for (const auto& [digest, ranks] : ranks_by_digest) {
      parts.push_back(absl::StrCat(ranks.size() == 1 ? "rank " : "ranks ",
                                   absl::StrJoin(ranks, ", "), ": ", digest));
    }
    return Fail(
        absl::StrCat("the ranks ended with different weights (", absl::StrJoin(parts, "; "), ")"));
  }
  state_digest_ = ranks_by_digest.begin()->first;
  phase_ = Phase::kFinished;
  reason_ = ranks_.size() == 1 ? "the worker finished"
                               : absl::StrCat("all ", ranks_.size(), " workers finished");
}

void Membership::Fail(const std::string& reason) {
  phase_ = Phase::kFailed;
  reason_ = reason;
}

std::vector<Membership::Node> Membership::Nodes() const {
  std::vector<Node> nodes;
  std::map<std::string, size_t> index;
  for (const auto& [id, member] : members_) {
    const Hello& hello = member.hello;
    const auto [found, is_new] = index.try_emplace(hello.node_id(), nodes.size());
    if (is_new) nodes.push_back({hello.host(), hello.local_world_size(), {}});
    nodes[found->second].members.push_back(id);
  }
  return nodes;
}

const CountRange& Membership::wanted() const {
  return options_.workers.given() ? options_.workers : options_.nodes;
}

std::string Membership::Wanted() const {
  const CountRange& range = wanted();
  const std::string noun = options_.workers.given() ? "worker" : "node";
  if (range.min == range.max) return Counted(range.min, noun);
  if (range.max == std::numeric_limits<int>::max()) {
    return absl::StrCat("at least ", Counted(range.min, noun));
  }
  return absl::StrCat(range.min, " to ", Counted(range.max, noun));
}

std::optional<uint32_t> Membership::RankOf(MemberId id) const {
  const auto found = std::find(ranks_.begin(), ranks_.end(), id);
  if (found == ranks_.end()) return std::nullopt;
  return static_cast<uint32_t>(found - ranks_.begin());
}

std::string Membership::Describe(MemberId id) const {
  const Hello& who = hello(id);
  if (const auto rank = RankOf(id)) {
    return absl::StrCat("rank ", *rank, " of ", ranks_.size(), " (host ", who.host(), ", pid ",
                        who.pid(), ")");
  }
  return absl::StrCat("a process of host ", who.host(), " (pid ", who.pid(), ")");
}

}  // namespace ringmaster
