// Membership to test with: joins, signs of life and time passing in one line each.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "coordinator/membership.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {

inline constexpr int kAny = std::numeric_limits<int>::max();

inline Hello MakeHello(const std::string& node, uint32_t local_rank = 0,
                       uint32_t local_world_size = 1) {
  Hello hello;
  hello.set_incarnation(std::hash<std::string>()(node) + local_rank);
  hello.set_node_id(node + "-1234");
  hello.set_host(node);
  hello.set_pid(static_cast<int32_t>(100 + local_rank));
  hello.set_local_rank(local_rank);
  hello.set_local_world_size(local_world_size);
  hello.set_device(CPU);
  hello.set_version("1.0");
  hello.set_data_digest("abc");
  return hello;
}

inline Standing MakeStanding(uint64_t generation = 0, const std::string& reason = "") {
  Standing standing;
  standing.set_generation(generation);
  standing.set_reason(reason);
  return standing;
}

class MembershipTest : public ::testing::Test {
 protected:
  using Phase = Membership::Phase;

  MembershipTest() {
    options_.version = "1.0";
    options_.data_digest = "abc";
    options_.join_timeout = absl::Seconds(60);
  }

  void Wait(CountRange nodes, CountRange workers = {}) {
    options_.nodes = nodes;
    options_.workers = workers;
    membership_.emplace(options_, now_);
  }

  absl::StatusOr<Membership::Joined> Join(const Hello& hello, uint64_t generation = 0) {
    auto joined = membership_->Join(now_, generation, hello);
    if (joined.ok()) silent_.erase(joined->id);
    if (joined.ok()) last_ = std::max(last_, joined->id);
    Decide();
    return joined;
  }
  // Joins and stands by.
  MemberId Enter(const Hello& hello, uint64_t generation = 0) {
    const auto joined = Join(hello, generation);
    EXPECT_TRUE(joined.ok()) << joined.status();
    if (!joined.ok()) return 0;
    EXPECT_FALSE(joined->recognised);
    Stand(joined->id);
    return joined->id;
  }
  void Stand(MemberId id, const std::string& reason = "") {
    membership_->Stands(now_, id, MakeStanding(membership_->generation(), reason));
    Decide();
  }
  // All members of the generation that are left, but for `busy`, answer an abort.
  void StandAll(MemberId busy = 0) {
    for (const MemberId id : std::vector<MemberId>(membership_->ranks())) {
      if (id != busy && membership_->Contains(id) && silent_.count(id) == 0) Stand(id);
    }
  }
  void Disconnect(MemberId id) {
    silent_.insert(id);
    membership_->Disconnected(now_, id, "was lost: its stream broke");
    Decide();
  }
  void Fail(MemberId id, absl::StatusCode code, const std::string& message) {
    Failure failure;
    failure.set_code(static_cast<int>(code));
    failure.set_message(message);
    membership_->Failed(now_, id, failure);
    Decide();
  }
  void Progress(absl::Duration hang_limit = absl::ZeroDuration()) {
    membership_->Progressed(now_, hang_limit);
    Decide();
  }

  // Forms as soon as it may, and remembers what else was asked for.
  void Decide() {
    Membership::Decision decision = membership_->Decide(now_);
    if (decision.can_form && form_) membership_->Form(now_, first_);
    can_form_ = decision.can_form;
    if (decision.broken) broken_.push_back(*std::move(decision.broken));
    if (decision.abort) ++aborts_;
    if (decision.regroup) regroups_.push_back(*decision.regroup);
  }

  // Everybody who is there, but for silent_, shows a sign of life as time goes on.
  Phase After(absl::Duration time) {
    const absl::Time end = now_ + time;
    do {
      now_ = std::min(end, now_ + absl::Milliseconds(10));
      for (MemberId id = 1; id <= last_; ++id) {
        if (silent_.count(id) == 0) membership_->Heard(now_, id);
      }
      Decide();
    } while (now_ < end);
    return membership_->phase();
  }

  void ExpectRefused(const Hello& hello, absl::StatusCode code, const std::string& message,
                     uint64_t generation = 0) {
    const absl::Status status = Join(hello, generation).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(message));
  }

  // Three ranks in training: node a with two processes (ids 1, 3), node b with one (2).
  void Train(CountRange nodes = {1, 3}) {
    form_ = false;
    Wait(nodes);
    Enter(MakeHello("a", 0, 2));
    Enter(MakeHello("b"));
    Enter(MakeHello("a", 1, 2));
    form_ = true;
    After(absl::Milliseconds(600));
    ASSERT_EQ(membership_->phase(), Phase::kTraining);
    ASSERT_THAT(membership_->ranks(), ::testing::ElementsAre(1, 3, 2));
    ASSERT_EQ(membership_->generation(), 1u);
  }
  // Everybody back at work in a new generation, whatever broke the former one.
  void Regather() {
    StandAll();
    After(absl::Milliseconds(600));
    ASSERT_EQ(membership_->phase(), Phase::kTraining);
  }

  std::string reason() const { return membership_->reason(); }

  MembershipOptions options_;
  absl::Time now_ = absl::FromUnixSeconds(1700000000);
  std::optional<Membership> membership_;
  MemberId last_ = 0;
  std::set<MemberId> silent_;
  std::optional<MemberId> first_;  // for Form()
  bool form_ = true;

  bool can_form_ = false;  // in the last decision
  std::vector<Membership::Broken> broken_;
  int aborts_ = 0;
  std::vector<MemberId> regroups_;
};

}  // namespace ringmaster
