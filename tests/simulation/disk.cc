#include "tests/simulation/disk.h"

#include <utility>

namespace ringmaster {
namespace {

constexpr uint64_t kTimeToRotate = uint64_t{1} << 30;

}  // namespace

// One coordinator's hold on the journal.
class Disk::SimJournal final : public Journal {
 public:
  explicit SimJournal(Disk* disk) : disk_(disk) {}

  void Append(std::string entry) override {
    (disk_->mutation_ == Mutation::kAcksBeforeCommit ? appended_ : pending_)
        .push_back(std::move(entry));
  }

  absl::Status Commit() override {
    if (pending_.empty() && appended_.empty() && !disk_->journal_.pending()) {
      return absl::OkStatus();
    }
    if (disk_->died_) return absl::OkStatus();
    const Death death = std::exchange(disk_->death_, Death::kNone);
    disk_->died_ = death != Death::kNone;
    if (death == Death::kBeforeCommit) return absl::OkStatus();
    for (std::string& entry : pending_) disk_->journal_.Append(std::move(entry));
    pending_ = std::exchange(appended_, {});
    return disk_->journal_.Commit();
  }

  bool pending() const override { return !pending_.empty() || disk_->journal_.pending(); }

  absl::Status Rotate(std::string snapshot) override {
    if (disk_->died_) return absl::OkStatus();
    const absl::Status status = disk_->journal_.Rotate(std::move(snapshot));
    if (status.ok()) pending_.clear();
    return status;
  }

  // Now and then it has grown enough.
  uint64_t size() const override { return disk_->random_->Chance(3) ? kTimeToRotate : 0; }

 private:
  Disk* const disk_;
  std::vector<std::string> pending_;
  std::vector<std::string> appended_;  // for the commit after the next
};

// Writes one state after another; of those that wait, the newest.
class Disk::SimWriter final : public StateWriter {
 public:
  explicit SimWriter(Disk* disk) : disk_(disk), life_(disk->life_) {}
  ~SimWriter() override { ++disk_->life_; }

  void Write(StoredStatePtr state, bool required,
             std::function<void(absl::StatusOr<std::string>)> done) override {
    Disk* const disk = disk_;
    const uint64_t life = life_;
    if (!required && disk->random_->Chance(15)) {
      disk->queue_->After(disk->random_->Milliseconds(1, 100), [disk, life, done] {
        if (disk->life_ == life) done(absl::CancelledError("a newer one takes its place"));
      });
      return;
    }
    const absl::Duration time = disk->random_->Chance(20) ? disk->random_->Milliseconds(100, 2000)
                                                          : disk->random_->Milliseconds(1, 50);
    disk->queue_->After(time, [disk, life, state, done] {
      if (disk->life_ != life) return;
      if (disk->full_) return done(absl::ResourceExhaustedError("the disk is full"));
      disk->checkpoints_.push_back({state, false});
      disk->trace_->Note("disk: checkpoint ", state->digest, " of generation ", state->generation);
      done(std::string("checkpoint"));
    });
  }

 private:
  Disk* const disk_;
  const uint64_t life_;
};

Disk::Disk(EventQueue* queue, Random* random, Trace* trace, Mutation mutation)
    : queue_(queue),
      random_(random),
      trace_(trace),
      mutation_(mutation),
      journal_(mutation == Mutation::kLyingDisk ? MemoryJournal::Disk::kLies
                                                : MemoryJournal::Disk::kHonest) {}

std::unique_ptr<Journal> Disk::OpenJournal() {
  died_ = false;
  death_ = Death::kNone;
  return std::make_unique<SimJournal>(this);
}

std::unique_ptr<StateWriter> Disk::OpenWriter() { return std::make_unique<SimWriter>(this); }

StoredStatePtr Disk::LoadStored(const RunState& state) const {
  const Ledger& ledger = state.ledger();
  StoredStatePtr best;
  uint64_t furthest = 0;
  for (const Checkpoint& checkpoint : checkpoints_) {
    const uint64_t position = FromProto(ledger.timeline(), checkpoint.state->position).value_or(0);
    if (checkpoint.damaged || position > ledger.size() || position < furthest ||
        !ledger.lineage().Contains(checkpoint.state->generation, position)) {
      continue;
    }
    furthest = position;
    best = checkpoint.state;
  }
  return best;
}

void Disk::SetFull(bool full) {
  full_ = full;
  journal_.Fail(full ? absl::ResourceExhaustedError("the disk is full") : absl::OkStatus());
}

std::vector<std::string> Disk::Crash() {
  ++life_;
  if (!checkpoints_.empty() && random_->Chance(5)) checkpoints_.back().damaged = true;
  return journal_.Crash();
}

}  // namespace ringmaster
