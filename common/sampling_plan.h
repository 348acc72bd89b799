// The sampling plan: which samples make up which batch, and which rank computes which of them.
//
// The batch sequence is a pure function of (seed, epoch, step). World size only decides who
// computes which slice of a global batch, so the curve is the same at any world size and any rank
// can be replaced at any step. An epoch visits each sample exactly once: nothing is padded or
// dropped; the last batch of an epoch is smaller where the global batch does not divide the data
// set.
//
// Everything here compiles for host and device. Thread safety: immutable values and pure functions.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/philox.h"

namespace ringmaster {

// A bijection of [0, size) chosen by (seed, epoch), with O(1) access to each element.
//
// A balanced Feistel network over the next even number of bits, its round keys drawn from Philox;
// results outside [0, size) are walked along their cycle until they fall inside (Black, Rogaway,
// "Ciphers with arbitrary finite domains", CT-RSA 2002). The domain is less than 4 * size, so a
// walk takes under 4 turns on average.
class Permutation {
 public:
  static constexpr int kRounds = 8;

  // `size` is in [1, 2^31].
  RM_HOST_DEVICE Permutation(uint64_t seed, uint32_t epoch, uint32_t size) : size_(size) {
    half_bits_ = 1;
    while ((uint64_t{1} << (2 * half_bits_)) < size) ++half_bits_;
    for (int block = 0; block < kRounds / 4; ++block) {
      const Philox4 keys = Philox(seed, PhiloxCounter(RandomUse::kPermutation, epoch, block));
      for (int i = 0; i < 4; ++i) keys_[4 * block + i] = keys.word[i];
    }
  }

  // Returns the sample id at `position` of the epoch. `position` is in [0, size).
  RM_HOST_DEVICE uint32_t operator()(uint32_t position) const {
    uint32_t value = position;
    do {
      value = Encrypt(value);
    } while (value >= size_);
    return value;
  }

  RM_HOST_DEVICE uint32_t size() const { return size_; }

 private:
  // The finaliser of MurmurHash3 over the keyed half block: every input bit reaches every output
  // bit.
  RM_HOST_DEVICE static uint32_t Mix(uint32_t half, uint32_t key) {
    uint32_t h = half * 0x9E3779B1u + key;
    h ^= h >> 16;
    h *= 0x85EBCA6Bu;
    h ^= h >> 13;
    h *= 0xC2B2AE35u;
    return h ^ (h >> 16);
  }

  RM_HOST_DEVICE uint32_t Encrypt(uint32_t value) const {
    const uint32_t mask = (uint32_t{1} << half_bits_) - 1;
    uint32_t left = value >> half_bits_;
    uint32_t right = value & mask;
    for (int round = 0; round < kRounds; ++round) {
      const uint32_t next = left ^ (Mix(right, keys_[round]) & mask);
      left = right;
      right = next;
    }
    return (left << half_bits_) | right;
  }

  uint32_t keys_[kRounds];
  uint32_t size_;
  int half_bits_;
};

// A half-open range of positions in an epoch's order.
struct PositionRange {
  uint32_t first = 0;
  uint32_t count = 0;

  RM_HOST_DEVICE uint32_t end() const { return first + count; }
  friend bool operator==(const PositionRange&, const PositionRange&) = default;
};

// The slice of `whole` that `rank` of `world_size` computes. It is cut into units of `granularity`
// samples from its beginning on, the last of which may be shorter; ranks have whole units, and
// their numbers differ by at most one, the larger ones first: 128 over 3 ranks is 43, 43, 42 in
// units of 1, and 48, 48, 32 in units of 16. May be empty when there are more ranks than units.
RM_HOST_DEVICE inline PositionRange SliceForRank(PositionRange whole, uint32_t rank,
                                                 uint32_t world_size, uint32_t granularity = 1) {
  const uint32_t units = whole.count / granularity + (whole.count % granularity != 0 ? 1u : 0u);
  const uint32_t base = units / world_size;
  const uint32_t larger = units % world_size;
  const uint32_t first_unit = rank * base + (rank < larger ? rank : larger);
  const uint32_t own_units = base + (rank < larger ? 1u : 0u);
  // In 64 bits: the end of the last unit may lie past what 32 bits hold.
  const uint64_t first = uint64_t{first_unit} * granularity;
  const uint64_t end = first + uint64_t{own_units} * granularity;
  const uint64_t count = whole.count;
  const auto first_in = static_cast<uint32_t>(first < count ? first : count);
  const auto end_in = static_cast<uint32_t>(end < count ? end : count);
  return PositionRange{whole.first + first_in, end_in - first_in};
}

// The samples of a micro-shard: what is computed on one rank as a whole in reproducible runs
// (kernels/exact.h), at any world size.
inline constexpr uint32_t kMicroShard = 16;
// The samples of the largest batch of a reproducible run: the sum of so many micro-shards'
// gradients cannot overflow (kernels/exact.h).
inline constexpr uint32_t kMostMicroShards = (1u << 12) - 1;
inline constexpr uint32_t kMostReproducibleBatch = kMostMicroShards * kMicroShard;

// In what units a batch is cut into slices.
RM_HOST_DEVICE inline constexpr uint32_t SliceGranularity(bool reproducible) {
  return reproducible ? kMicroShard : 1;
}

// The shape of a run: data set size, global batch, seed, and how batches are cut.
struct SamplingPlan {
  uint64_t seed = 0;
  uint32_t num_samples = 0;   // in the training split; at least 1
  uint32_t global_batch = 0;  // samples a step, summed over the ranks; at least 1
  uint32_t granularity = 1;   // SliceGranularity() of the run; at least 1

  RM_HOST_DEVICE uint32_t steps_per_epoch() const {
    return (num_samples + global_batch - 1) / global_batch;
  }

  // Positions of step `step` (0-based, below steps_per_epoch()) of any epoch.
  RM_HOST_DEVICE PositionRange Batch(uint32_t step) const {
    const uint32_t first = step * global_batch;
    const uint32_t left = num_samples - first;
    return PositionRange{first, left < global_batch ? left : global_batch};
  }

  // The part of `whole`, a batch or the test split, that `rank` of `world_size` computes. Everyone
  // who asks who computes what asks this.
  RM_HOST_DEVICE PositionRange Slice(PositionRange whole, uint32_t rank,
                                     uint32_t world_size) const {
    return SliceForRank(whole, rank, world_size, granularity);
  }

  // The order in which `epoch` (0-based) visits the samples.
  RM_HOST_DEVICE Permutation Order(uint32_t epoch) const {
    return Permutation(seed, epoch, num_samples);
  }

  friend bool operator==(const SamplingPlan&, const SamplingPlan&) = default;
};

// A 64-bit fingerprint of one sample id. Digests of sets of samples are sums of fingerprints modulo
// 2^64: independent of order and of how the set was split. (The finaliser of SplitMix64.)
RM_HOST_DEVICE inline uint64_t SampleFingerprint(uint32_t sample_id) {
  uint64_t z = (uint64_t{sample_id} + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

}  // namespace ringmaster
