// Membership: who takes part in a run, when training begins, and what ends it.
//
// A pure state machine: time is passed in, nothing is read, written or locked. Tell it what
// happened, then ask Decide(); reason() says why in a sentence for people.
//
// Nodes join with all their processes. Once the least number asked for is there and nobody joined
// for `settle` (at once when there is no room for more), a generation is formed: its number grows
// by one, ranks are dealt node by node in the order in which nodes joined, within a node by local
// rank. From then on the run fails as soon as a member does. The first failure is the cause, but
// one that only follows from another's waits a little for that other to be noticed.
//
// Thread safety: none; a plain value.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/settings.h"
#include "proto/training.pb.h"

namespace ringmaster {

// Numbers the sessions of a run in the order of their Hello.
using MemberId = uint64_t;

struct MembershipOptions {
  CountRange nodes;    // how many to wait for
  CountRange workers;  // the same in processes; when given, `nodes` does not count
  std::string version;
  std::string data_digest;
  absl::Duration settle = absl::Milliseconds(500);
  absl::Duration join_timeout = absl::Seconds(600);
  absl::Duration heartbeat_timeout = absl::Seconds(3);
  // Longer than heartbeat_timeout: whoever fell silent is named before those who waited for it.
  absl::Duration cause_wait = absl::Milliseconds(3250);
  // When this much passes between two decisions it was us who stood still, not the members.
  absl::Duration largest_gap = absl::Seconds(1);
};

class Membership {
 public:
  enum class Phase { kWaiting, kTraining, kFinished, kFailed };

  Membership(MembershipOptions options, absl::Time now);

  // A process asks to take part. `id` is above all former ones.
  //   INVALID_ARGUMENT     the Hello is malformed or contradicts its node's other processes
  //   FAILED_PRECONDITION  another version, data set or kind of device; the run is over
  //   RESOURCE_EXHAUSTED   no room, or training has begun
  //   UNAVAILABLE          its former session has not ended yet: it may try again
  absl::Status Join(absl::Time now, MemberId id, const Hello& hello);
  // A sign of life.
  void Heard(absl::Time now, MemberId id);
  // The member says that it cannot go on.
  void Failed(absl::Time now, MemberId id, const Failure& failure);
  // The member is gone; `how` continues "rank 1 of 3 (...) ".
  void Lost(MemberId id, const std::string& how);
  // The member has done its work, with this digest of its state.
  void Finished(MemberId id, const std::string& state_digest);

  // What all of that and the time amount to. Call it after every event and some ten times a second.
  Phase Decide(absl::Time now);

  Phase phase() const { return phase_; }
  const std::string& reason() const { return reason_; }
  uint64_t generation() const { return generation_; }  // 0 before the first
  const std::vector<MemberId>& ranks() const { return ranks_; }
  std::optional<uint32_t> RankOf(MemberId id) const;
  // The digest all ranks finished with; empty before kFinished.
  const std::string& state_digest() const { return state_digest_; }

  bool Contains(MemberId id) const { return members_.count(id) > 0; }
  const Hello& hello(MemberId id) const { return members_.at(id).hello; }
  // "rank 1 of 3 (host a, pid 77)", or "a process of host a (pid 77)" before it has a rank.
  std::string Describe(MemberId id) const;

 private:
  struct MemberState {
    Hello hello;
    absl::Time last_heard;
    bool failed = false;    // has said so: its stream's end is no news
    bool finished = false;  // with state_digest
    std::string state_digest;
  };
  // The processes of one agent, in order of their joining.
  struct Node {
    std::string host;
    uint32_t size = 0;  // processes it announced
    std::vector<MemberId> members;
    bool complete() const { return members.size() == size; }
  };

  absl::Status CheckPeers(const Hello& hello) const;
  absl::Status CheckRoom(const Hello& hello) const;
  std::vector<Node> Nodes() const;
  const CountRange& wanted() const;
  std::string Wanted() const;
  void DecideWaiting(absl::Time now);
  void DecideTraining(absl::Time now);
  void Form(const std::vector<Node>& nodes);
  void CompareDigests();
  void Fail(const std::string& reason);
  void ForgiveOwnPause(absl::Time now);

  MembershipOptions options_;
  absl::Time join_deadline_;
  absl::Time last_join_ = absl::InfinitePast();
  absl::Time last_decision_;
  Phase phase_ = Phase::kWaiting;
  std::string reason_;
  uint64_t generation_ = 0;
  std::map<MemberId, MemberState> members_;
  std::vector<MemberId> ranks_;
  std::string state_digest_;
  // The first failure that follows from another's: the cause, if no other shows up in time.
  std::string consequence_;
  absl::Time consequence_holds_ = absl::InfiniteFuture();
};

}  // namespace ringmaster
