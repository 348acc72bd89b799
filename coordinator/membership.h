// Membership: who takes part in a run, when a generation begins, and what ends it.
//
// A pure state machine: time is passed in, nothing is read, written or locked. Tell it what
// happened, then call Decide() and do what it says; reason() says why in a sentence for people.
//
// A run goes from generation to generation. While it gathers, processes join, and those of the
// former generation come back to stand by; once there are enough of them a generation can be formed
// (the caller chooses the state it goes on from, see recovery.h). While it trains, a lost, hung or
// failed member breaks the generation: all others are told to abort and to stand by, and who does
// not answer in time is put out. A newcomer that there is room for, or a member that leaves in good
// order, ends the generation at a step that all ranks agree on.
//
// A stream that breaks while others are alive is a death. When nobody is left, the trouble may be
// the coordinator's own (it has just been started anew, its network failed): then nobody counts as
// lost until a grace is over, and who comes back in time finds its generation going on.
//
// Thread safety: none; a plain value.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/settings.h"
#include "proto/training.pb.h"

namespace ringmaster {

// Numbers the members of a run in the order of their joining.
using MemberId = uint64_t;

struct MembershipOptions {
  CountRange nodes;    // how many to wait for
  CountRange workers;  // the same in processes; when given, `nodes` does not count
  std::string version;
  std::string data_digest;
  absl::Duration settle = absl::Milliseconds(500);
  absl::Duration join_timeout = absl::Seconds(600);  // until the first generation
  // How long a member may be silent, or take to stand by when told to.
  absl::Duration patience = absl::Seconds(3);
  int max_failures = -1;  // generations that may break; -1: any number with progress between them
  // So many in a row without a step end the run.
  uint32_t fruitless_limit = 10;
  // When this much passes between two decisions it was us who stood still, not the members.
  absl::Duration largest_gap = absl::Seconds(1);
  // A broken stream is looked at for so long, in case all others break too.
  absl::Duration confirmation = absl::Milliseconds(50);
  // The most that the first step of a generation may take: rendezvous and warm-up.
  absl::Duration warm_up = absl::Seconds(60);

  absl::Duration reconnect_grace() const { return patience * 5 / 3; }
  absl::Duration least_hang() const { return patience * 5 / 3; }
};

class Membership {
 public:
  enum class Phase { kGathering, kTraining, kFinished, kFailed };

  Membership(MembershipOptions options, absl::Time now);
  // Another coordinator of this run has died: these were the members of its last generation, by
  // rank, and may still be at work; none if that is over. `progressed`: that generation has got
  // further since it was formed. `failures` and so on as in RunState.
  void Restore(absl::Time now, uint64_t generation, const std::vector<Hello>& members,
               bool progressed, uint32_t failures, uint32_t fruitless_failures,
               const std::string& first_cause);

  struct Joined {
    MemberId id = 0;
    bool recognised = false;  // it is a member already, of a generation that goes on
  };
  // A process has said hello, with `generation` in the envelope.
  //   INVALID_ARGUMENT     the Hello is malformed or contradicts its node's other processes, or the
  //                        generation is far ahead
  //   FAILED_PRECONDITION  another version, data set or kind of device; the run is over
  //   RESOURCE_EXHAUSTED   no room
  absl::StatusOr<Joined> Join(absl::Time now, uint64_t generation, const Hello& hello);
  // A sign of life.
  void Heard(absl::Time now, MemberId id);
  // It has stopped working, and holds this.
  void Stands(absl::Time now, MemberId id, const Standing& standing);
  // It says that it cannot go on, and ends. Where the same would happen on any machine that ends
  // the run, unless others train on without it.
  void Failed(absl::Time now, MemberId id, const Failure& failure);
  // Its stream has ended; `how` continues "rank 1 of 3 (...) ".
  void Disconnected(absl::Time now, MemberId id, const std::string& how);
  // It leaves in good order.
  void Leaves(absl::Time now, MemberId id);
  // It has done its work, with this digest of its state.
  void Finished(MemberId id, const std::string& state_digest);
  // The generation has got further. `hang_limit`: after so long without the next progress it hangs.
  void Progressed(absl::Time now, absl::Duration hang_limit);
  // The records are complete and the final state with this digest is safe.
  void FinalStateSafe(const std::string& digest) { final_digest_ = digest; }

  struct Broken {
    std::string reason;
    bool progressed = false;
    absl::Time noticed;
  };
  // What the caller has to do, besides looking at phase() and reason().
  struct Decision {
    bool can_form = false;            // choose a state, then call Form()
    std::optional<Broken> broken;     // the generation has just failed
    bool abort = false;               // tell the members of the generation to abort
    std::optional<MemberId> regroup;  // ask it to raise the flag
  };
  // What all of that and the time amount to. Call it after every event and some ten times a second.
  Decision Decide(absl::Time now);

  // All ranks are to stop at an agreed step (the run is to be interrupted): Decide() asks for it.
  void RequestRegroup(const std::string& why) { regroup_wanted_ = why; }
  // Who would be in the next generation, in rank order: processes of a node together.
  std::vector<MemberId> Candidates() const;
  // Forms the next generation of Candidates(), with `first` and its node in front.
  void Form(absl::Time now, std::optional<MemberId> first);
  // Ends the run: it cannot go on.
  void Fail(const std::string& reason);

  Phase phase() const { return phase_; }
  const std::string& reason() const { return reason_; }
  uint64_t generation() const { return generation_; }            // 0 before the first
  const std::vector<MemberId>& ranks() const { return ranks_; }  // of the last generation
  std::optional<uint32_t> RankOf(MemberId id) const;
  // Whether all members of the last generation that are left have stopped.
  bool AllStand() const;
  // The digest all ranks finished with; empty before kFinished.
  const std::string& state_digest() const { return state_digest_; }

  bool Contains(MemberId id) const { return members_.count(id) > 0; }
  const Hello& hello(MemberId id) const { return members_.at(id).hello; }
  const std::optional<Standing>& standing(MemberId id) const { return members_.at(id).standing; }
  // Why a member is not contained any more: the reason to end its session with.
  std::string WhyGone(MemberId id) const;
  // Whether it is of the last generation and was told to stop, but does not stand by yet.
  bool MustAbort(MemberId id) const;
  // "rank 1 of 3 (host a, pid 77)", or "a process of host a (pid 77)" where it has no rank. Also of
  // one that is gone.
  std::string Describe(MemberId id) const;

 private:
  struct MemberState {
    MemberState(const Hello& who, absl::Time now) : hello(who), last_heard(now) {}

    Hello hello;
    absl::Time last_heard;
    bool connected = true;
    absl::Time disconnected_at = absl::InfinitePast();
    std::string how;  // it went
    std::optional<Standing> standing;
    std::optional<std::string> finished;  // with this digest
  };
  // The processes of one agent, in order of their joining.
  struct Node {
    std::string id;
    std::string host;
    uint32_t size = 0;  // processes it announced
    std::vector<MemberId> standing;
    uint32_t present = 0;
    bool complete() const { return standing.size() == size; }
  };
  // How the members that could begin a generation look to the plan.
  struct Muster {
    uint64_t ready = 0;  // nodes or workers
    bool enough = false;
    bool full = false;
    std::vector<std::string> partial;
    std::vector<MemberId> members;
  };

  absl::Status CheckPeers(const Hello& hello) const;
  absl::Status CheckRoom(const Hello& hello) const;
  std::optional<MemberId> Recognise(absl::Time now, uint64_t generation, const Hello& hello);
  void Supersede(absl::Time now, const Hello& hello);
  std::vector<Node> Nodes() const;
  Muster TakeMuster() const;
  const CountRange& wanted() const;
  std::string Wanted() const;
  // The same for people.
  std::string WhoIsHere(const Muster& muster) const;
  std::string WaitingFor(const Muster& muster) const;

  void DecideGathering(absl::Time now, Decision* decision);
  void DropSilent(absl::Time now);
  bool Pending(absl::Time now, Decision* decision);
  void DecideTraining(absl::Time now, Decision* decision);
  bool CheckFinished();
  void CompareDigests();
  bool InGrace(absl::Time now);
  void FindLost(absl::Time now);
  void CheckRegroup(absl::Time now, Decision* decision);
  bool NewcomersWait(absl::Time now) const;
  void Break(absl::Time now, const std::string& reason, Decision* decision);
  bool CountFailure(const std::string& reason, bool progressed);
  void BeginGathering(absl::Time now, bool aborting, absl::Duration patience);
  bool AtWork(MemberId id) const;
  void NoteTrouble(const std::string& reason, absl::Time since);
  bool TroubleIsClear(absl::Time now) const;
  void Remove(absl::Time now, MemberId id, const std::string& why);
  bool Alive(absl::Time now, const MemberState& member) const;
  void ForgiveOwnPause(absl::Time now);

  const MembershipOptions options_;
  absl::Time join_deadline_;
  absl::Time last_change_;  // a member came or went
  absl::Time last_decision_;
  Phase phase_ = Phase::kGathering;
  std::string reason_;
  uint64_t generation_ = 0;
  uint64_t highest_seen_ = 0;  // generation that a process has told of
  MemberId last_member_ = 0;
  std::map<MemberId, MemberState> members_;
  std::vector<MemberId> ranks_;            // of the last generation, also those who are gone
  std::map<MemberId, std::string> names_;  // of its members
  std::map<MemberId, std::string> gone_;   // why, since the last generation was formed
  std::string state_digest_;
  std::string final_digest_;

  // While the generation is at work.
  absl::Time progress_deadline_ = absl::InfiniteFuture();
  absl::Duration hang_limit_;
  bool progressed_ = false;
  std::optional<absl::Time> alone_since_;  // nobody has been there since; until the grace is over
  std::string regroup_wanted_;
  bool regroup_asked_ = false;
  // What breaks the generation, and since when: another member's loss may show up as its cause.
  std::optional<std::pair<std::string, absl::Time>> trouble_;

  // While gathering: until when the former generation's members may take to stand by, and whether
  // they were told to abort, not only to stop at a step.
  absl::Time stand_deadline_ = absl::InfinitePast();
  bool aborting_ = false;
  std::string why_over_;  // the former generation

  uint32_t failures_ = 0;
  uint32_t fruitless_ = 0;
  std::string first_cause_;
};

}  // namespace ringmaster
