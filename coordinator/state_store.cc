#include "coordinator/state_store.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace ringmaster {
namespace {

// Well below kMaxMessageBytes of common/credentials.h.
constexpr size_t kChunkBytes = 512 << 10;

static_assert(std::endian::native == std::endian::little, "state travels as little-endian fp32");

std::vector<float> TakeFloats(const std::string& bytes, size_t part, size_t count) {
  std::vector<float> values(count);
  std::memcpy(values.data(), bytes.data() + part * count * sizeof(float), count * sizeof(float));
  return values;
}

}  // namespace

absl::Status StateAssembler::Append(const StateChunk& chunk) {
  if (!started_) {
    started_ = true;
    if (chunk.num_parameters() != num_parameters_) {
      return absl::InvalidArgumentError(absl::StrCat("the state is of another model: wanted ",
                                                     num_parameters_, " parameters, got ",
                                                     chunk.num_parameters()));
    }
    stored_.generation = chunk.generation();
    stored_.position = chunk.position();
    stored_.state.step = chunk.step();
    stored_.digest = chunk.digest();
    bytes_.reserve(wanted_bytes());
  }
  if (chunk.data().size() > wanted_bytes() - bytes_.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the state has more than the ", wanted_bytes(), " bytes of its model"));
  }
  bytes_ += chunk.data();
  return absl::OkStatus();
}

absl::StatusOr<StoredStatePtr> StateAssembler::Finish() {
  if (!started_ || bytes_.size() != wanted_bytes()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the state has ", bytes_.size(), " bytes instead of ", wanted_bytes()));
  }
  stored_.state.parameters = TakeFloats(bytes_, 0, num_parameters_);
  stored_.state.first_moment = TakeFloats(bytes_, 1, num_parameters_);
  stored_.state.second_moment = TakeFloats(bytes_, 2, num_parameters_);
  if (const std::string digest = StateSha256(stored_.state); digest != stored_.digest) {
    return absl::DataLossError(absl::StrCat("the state arrived damaged: its digest is ", digest,
                                            ", wanted ", stored_.digest));
  }
  return std::make_shared<const StoredState>(std::move(stored_));
}

bool StateChunker::Next(StateChunk* chunk) {
  const TrainState& state = stored_->state;
  const size_t part_bytes = state.parameters.size() * sizeof(float);
  if (sent_ == 3 * part_bytes) return false;
  chunk->Clear();
  if (sent_ == 0) {
    chunk->set_run_id(run_id_);
    chunk->set_generation(stored_->generation);
    *chunk->mutable_position() = stored_->position;
    chunk->set_step(state.step);
    chunk->set_num_parameters(state.parameters.size());
    chunk->set_digest(stored_->digest);
  }
  const std::vector<float>* const parts[] = {&state.parameters, &state.first_moment,
                                             &state.second_moment};
  const size_t within = sent_ % part_bytes;
  const size_t size = std::min(kChunkBytes, part_bytes - within);
  const auto* bytes = reinterpret_cast<const char*>(parts[sent_ / part_bytes]->data());
  chunk->set_data(bytes + within, size);
  sent_ += size;
  return true;
}

void StateStore::Put(StoredStatePtr stored) {
  MutexLock lock(&mutex_);
  if (newest_ != nullptr && newest_->digest != stored->digest) before_ = std::move(newest_);
  newest_ = std::move(stored);
}

StoredStatePtr StateStore::Find(const std::string& digest) const {
  MutexLock lock(&mutex_);
  for (const StoredStatePtr& state : {newest_, before_}) {
    if (state != nullptr && state->digest == digest) return state;
  }
  return nullptr;
}

StoredStatePtr StateStore::newest() const {
  MutexLock lock(&mutex_);
  return newest_;
}

}  // namespace ringmaster
