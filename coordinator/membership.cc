#include "coordinator/membership.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "common/step_tail.h"

namespace ringmaster {
namespace {

constexpr size_t kMaxTextBytes = 1024;
// So far may the generation of a process be ahead of what the disk has kept.
constexpr uint64_t kMaxGenerationsAhead = 1'000'000;

std::string Counted(uint64_t count, const std::string& noun) {
  return absl::StrCat(count, " ", noun, count == 1 ? "" : "s");
}

std::string DeviceName(DeviceKind device) { return device == CUDA ? "CUDA" : "CPU"; }

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

// The same would happen again, on any machine.
bool IsFatal(int code) {
  const auto status = static_cast<absl::StatusCode>(code);
  return status == absl::StatusCode::kInvalidArgument ||
         status == absl::StatusCode::kFailedPrecondition ||
         status == absl::StatusCode::kUnimplemented || status == absl::StatusCode::kOutOfRange;
}

bool SamePlace(const Hello& a, const Hello& b) {
  return a.node_id() == b.node_id() && a.local_rank() == b.local_rank();
}

std::string Name(const Hello& hello) {
  return absl::StrCat("host ", hello.host(), ", pid ", hello.pid());
}

}  // namespace

Membership::Membership(MembershipOptions options, absl::Time now)
    : options_(std::move(options)),
      join_deadline_(now + options_.join_timeout),
      last_change_(absl::InfinitePast()),
      last_decision_(now),
      hang_limit_(options_.least_hang()) {
  reason_ = absl::StrCat("waiting for ", Wanted(), ": nobody is here");
}

void Membership::Restore(absl::Time now, uint64_t generation, const std::vector<Hello>& members,
                         bool progressed, uint32_t failures, uint32_t fruitless_failures,
                         const std::string& first_cause) {
  generation_ = generation;
  progressed_ = progressed;
  failures_ = failures;
  fruitless_ = fruitless_failures;
  first_cause_ = first_cause;
  for (const Hello& hello : members) {
    const MemberId id = ++last_member_;
    MemberState member(hello, now);
    member.connected = false;
    member.disconnected_at = now;
    member.how = "did not come back after the coordinator was started anew";
    members_.emplace(id, std::move(member));
    ranks_.push_back(id);
  }
  for (const MemberId id : ranks_) names_[id] = Describe(id);
  why_over_ = "the coordinator was started anew";
  if (ranks_.empty()) return;
  phase_ = Phase::kTraining;
  alone_since_ = now;
  progress_deadline_ = now + options_.reconnect_grace() + options_.warm_up;
  reason_ = absl::StrCat("the coordinator was started anew: waiting for the ", ranks_.size(),
                         " workers of generation ", generation_, " to come back");
}

// ---------------------------------------------------------------- what happens

absl::StatusOr<Membership::Joined> Membership::Join(absl::Time now, uint64_t generation,
                                                    const Hello& hello) {
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
  if (const auto id = Recognise(now, generation, hello)) return Joined{*id, true};
  if (generation > generation_ + kMaxGenerationsAhead) {
    return absl::InvalidArgumentError(
        absl::StrCat("hello: of generation ", generation, " in a run that is at ", generation_));
  }
  // Where the disk took less than it promised, numbers grow all the same.
  highest_seen_ = std::max(highest_seen_, generation);
  RM_RETURN_IF_ERROR(CheckPeers(hello));
  Supersede(now, hello);
  RM_RETURN_IF_ERROR(CheckRoom(hello));
  const MemberId id = ++last_member_;
  members_.emplace(id, MemberState(hello, now));
  last_change_ = now;
  return Joined{id, false};
}

std::optional<MemberId> Membership::Recognise(absl::Time now, uint64_t generation,
                                              const Hello& hello) {
  if (generation == 0 || generation != generation_) return std::nullopt;
  for (auto& [id, member] : members_) {
    if (member.hello.incarnation() != hello.incarnation() || !RankOf(id)) continue;
    if (!SamePlace(member.hello, hello) || member.standing) return std::nullopt;
    member.hello = hello;
    member.connected = true;
    member.last_heard = now;
    regroup_asked_ = false;  // what was sent over the former stream may not have come
    return id;
  }
  return std::nullopt;
}

absl::Status Membership::CheckPeers(const Hello& hello) const {
  for (const auto& [id, member] : members_) {
    const Hello& other = member.hello;
    if (other.device() != hello.device()) {
      return absl::FailedPreconditionError(
          absl::StrCat("this process computes on ", DeviceName(hello.device()), ", ", Describe(id),
                       " on ", DeviceName(other.device()), ": start all with the same --backend"));
    }
    if (other.node_id() == hello.node_id() &&
        other.local_world_size() != hello.local_world_size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("hello: node ", hello.node_id(), " announced ", other.local_world_size(),
                       " processes before, now ", hello.local_world_size()));
    }
  }
  return absl::OkStatus();
}

// An agent starts a process only when the one before it has ended, and a process draws a new
// incarnation only when it has left its generation.
void Membership::Supersede(absl::Time now, const Hello& hello) {
  std::vector<MemberId> former;
  for (const auto& [id, member] : members_) {
    if (SamePlace(member.hello, hello)) former.push_back(id);
  }
  for (const MemberId id : former) {
    const std::string how =
        members_.at(id).how.empty() ? "was replaced by a new process" : members_.at(id).how;
    if (AtWork(id)) NoteTrouble(absl::StrCat(Describe(id), " ", how), absl::InfinitePast());
    Remove(now, id, "another process has taken its place");
  }
}

absl::Status Membership::CheckRoom(const Hello& hello) const {
  uint64_t nodes = 0;
  uint64_t present = 0;
  uint64_t announced = 0;
  bool known = false;
  for (const Node& node : Nodes()) {
    ++nodes;
    present += node.present;
    announced += node.size;
    known = known || node.id == hello.node_id();
  }
  const bool count_workers = options_.workers.given();
  // A node is taken as a whole where nodes count; a process alone where processes do, but not
  // before the first generation: the rest of its node is about to come.
  const bool whole = !count_workers || generation_ == 0;
  if (whole && known) return absl::OkStatus();
  const uint64_t before = !count_workers ? nodes : whole ? announced : present;
  const uint64_t added = count_workers && whole ? hello.local_world_size() : 1;
  if (before + added > static_cast<uint64_t>(wanted().max)) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the run takes ", Wanted(), "; ", before, " joined before, this ",
        whole ? "node" : "process", " brings ", Counted(added, count_workers ? "worker" : "node")));
  }
  if (announced + hello.local_world_size() > static_cast<uint64_t>(tail::kMaxWorldSize)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a run takes at most ", tail::kMaxWorldSize, " processes"));
  }
  return absl::OkStatus();
}

void Membership::Heard(absl::Time now, MemberId id) {
  const auto found = members_.find(id);
  if (found != members_.end()) found->second.last_heard = now;
}

void Membership::Stands(absl::Time now, MemberId id, const Standing& standing) {
  const auto found = members_.find(id);
  if (found == members_.end()) return;
  const bool at_work = AtWork(id);
  found->second.standing = standing;
  found->second.finished.reset();
  last_change_ = now;
  if (!at_work) return;
  if (!standing.reason().empty()) {
    NoteTrouble(absl::StrCat(Describe(id), ": ", standing.reason()), now);
  } else if (phase_ == Phase::kTraining) {
    BeginGathering(now, /*aborting=*/false, std::max(options_.patience, hang_limit_));
    why_over_ = "all stopped at an agreed step";
  }
}

void Membership::Failed(absl::Time now, MemberId id, const Failure& failure) {
  if (members_.count(id) == 0) return;
  const std::string reason = absl::StrCat(Describe(id), ": ", failure.message());
  const bool trains = phase_ == Phase::kTraining;
  // A newcomer that cannot be of use is no reason to disturb those who train.
  const bool concerns_all = !trains || RankOf(id);
  if (concerns_all && IsFatal(failure.code())) return Fail(reason);
  if (AtWork(id) || (trains && concerns_all)) {
    NoteTrouble(reason, absl::InfinitePast());
  } else if (concerns_all && !CountFailure(reason, /*progressed=*/false)) {
    return;
  }
  Remove(now, id, failure.message());
}

void Membership::Disconnected(absl::Time now, MemberId id, const std::string& how) {
  const auto found = members_.find(id);
  if (found == members_.end()) return;
  MemberState& member = found->second;
  member.connected = false;
  member.disconnected_at = now;
  member.how = how;
  // It may come back to a generation that goes on, but not to a place in the line.
  if (!RankOf(id) || member.standing) Remove(now, id, how);
}

void Membership::Leaves(absl::Time now, MemberId id) {
  if (members_.count(id) == 0) return;
  const std::string who = Describe(id);
  if (phase_ == Phase::kTraining && RankOf(id)) {
    BeginGathering(now, /*aborting=*/false, std::max(options_.patience, hang_limit_));
    why_over_ = absl::StrCat(who, " has left");
  }
  Remove(now, id, "it has left");
}

void Membership::Finished(MemberId id, const std::string& state_digest) {
  const auto found = members_.find(id);
  if (found != members_.end()) found->second.finished = state_digest;
}

void Membership::Progressed(absl::Time now, absl::Duration hang_limit) {
  progressed_ = true;
  hang_limit_ = std::max(options_.least_hang(), hang_limit);
  progress_deadline_ = now + hang_limit_;
}

// ---------------------------------------------------------------- who begins a generation

std::vector<Membership::Node> Membership::Nodes() const {
  std::vector<Node> nodes;
  std::map<std::string, size_t> index;
  for (const auto& [id, member] : members_) {
    const Hello& hello = member.hello;
    const auto [found, is_new] = index.try_emplace(hello.node_id(), nodes.size());
    if (is_new) nodes.push_back({hello.node_id(), hello.host(), hello.local_world_size(), {}, 0});
    Node& node = nodes[found->second];
    ++node.present;
    if (member.standing) node.standing.push_back(id);
  }
  for (Node& node : nodes) {
    std::sort(node.standing.begin(), node.standing.end(), [this](MemberId a, MemberId b) {
      return hello(a).local_rank() < hello(b).local_rank();
    });
  }
  return nodes;
}

Membership::Muster Membership::TakeMuster() const {
  const bool count_workers = options_.workers.given();
  Muster muster;
  for (const Node& node : Nodes()) {
    if (!node.complete()) {
      muster.partial.push_back(
          absl::StrCat(node.standing.size(), " of ", node.size, " processes of host ", node.host));
      // Before the first generation the rest is about to come; later it may be gone for long.
      if (!count_workers || generation_ == 0) continue;
    }
    muster.ready += count_workers ? node.standing.size() : 1;
    muster.members.insert(muster.members.end(), node.standing.begin(), node.standing.end());
  }
  const bool waits = generation_ == 0 && !muster.partial.empty();
  muster.enough = !waits && muster.ready >= static_cast<uint64_t>(wanted().min);
  muster.full = muster.ready >= static_cast<uint64_t>(wanted().max);
  return muster;
}

std::string Membership::WhoIsHere(const Muster& muster) const {
  const std::string parts = absl::StrJoin(muster.partial, ", ");
  if (muster.ready == 0) {
    return muster.partial.empty() ? "nobody is here" : absl::StrCat(parts, " so far");
  }
  const std::string whole =
      absl::StrCat(muster.ready, muster.ready == 1 ? " is here" : " are here");
  return muster.partial.empty() ? whole : absl::StrCat(whole, ", and ", parts);
}

std::string Membership::WaitingFor(const Muster& muster) const {
  if (muster.enough) {
    return absl::StrCat("waiting a moment for more than the ", muster.ready, " that are here");
  }
  return absl::StrCat("waiting for ", Wanted(), ": ", WhoIsHere(muster));
}

std::vector<MemberId> Membership::Candidates() const { return TakeMuster().members; }

void Membership::Form(absl::Time now, std::optional<MemberId> first) {
  ranks_ = Candidates();
  if (first) {
    const std::string node = hello(*first).node_id();
    std::stable_sort(ranks_.begin(), ranks_.end(), [&](MemberId a, MemberId b) {
      const auto order = [&](MemberId id) {
        return id == *first ? 0 : hello(id).node_id() == node ? 1 : 2;
      };
      return order(a) < order(b);
    });
  }
  generation_ = std::max(generation_, highest_seen_) + 1;
  names_.clear();
  gone_.clear();
  uint64_t hosts = 0;
  std::string last_node;
  for (const MemberId id : ranks_) {
    MemberState& member = members_.at(id);
    member.standing.reset();
    member.finished.reset();
    names_[id] = Describe(id);
    if (std::exchange(last_node, member.hello.node_id()) != member.hello.node_id()) ++hosts;
  }
  phase_ = Phase::kTraining;
  progress_deadline_ = now + options_.warm_up;
  progressed_ = false;
  alone_since_.reset();
  regroup_asked_ = false;
  trouble_.reset();
  reason_ = absl::StrCat("generation ", generation_, " trains with ",
                         Counted(ranks_.size(), "worker"), " on ", Counted(hosts, "node"));
}

void Membership::Fail(const std::string& reason) {
  phase_ = Phase::kFailed;
  reason_ = reason;
}

const CountRange& Membership::wanted() const {
  static constexpr CountRange kOne{1, 1};
  if (options_.workers.given()) return options_.workers;
  return options_.nodes.given() ? options_.nodes : kOne;
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

// ---------------------------------------------------------------- questions

std::optional<uint32_t> Membership::RankOf(MemberId id) const {
  const auto found = std::find(ranks_.begin(), ranks_.end(), id);
  if (found == ranks_.end()) return std::nullopt;
  return static_cast<uint32_t>(found - ranks_.begin());
}

bool Membership::AllStand() const {
  return std::all_of(ranks_.begin(), ranks_.end(), [this](MemberId id) {
    const auto found = members_.find(id);
    return found == members_.end() || found->second.standing;
  });
}

bool Membership::MustAbort(MemberId id) const {
  const auto found = members_.find(id);
  return phase_ == Phase::kGathering && aborting_ && found != members_.end() &&
         !found->second.standing && RankOf(id).has_value();
}

std::string Membership::WhyGone(MemberId id) const {
  const auto found = gone_.find(id);
  return found == gone_.end() ? "the run has gone on without it" : found->second;
}

std::string Membership::Describe(MemberId id) const {
  const auto member = members_.find(id);
  if (member == members_.end()) {
    const auto name = names_.find(id);
    return name == names_.end() ? "a former member" : name->second;
  }
  if (const auto rank = RankOf(id)) {
    return absl::StrCat("rank ", *rank, " of ", ranks_.size(), " (", Name(member->second.hello),
                        ")");
  }
  return absl::StrCat("a process of host ", member->second.hello.host(), " (pid ",
                      member->second.hello.pid(), ")");
}

}  // namespace ringmaster
