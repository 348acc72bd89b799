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

// The slice of `whole` that `rank` of `world_size` computes. Sizes differ by at most one, the
// larger ones first: 128 over 3 ranks is 43, 43, 42. May be empty when there are more ranks than
// samples.
RM_HOST_DEVICE inline PositionRange SliceForRank(PositionRange whole, uint32_t rank,
                                                 uint32_t world_size) {
  const uint32_t base = whole.count / world_size;
  const uint32_t larger = whole.count % world_size;
  const uint32_t before = rank * base + (rank < larger ? rank : larger);
  return PositionRange{whole.first + before, base + (rank < larger ? 1u : 0u)};
}

// The shape of a run: data set size, global batch and seed.
struct SamplingPlan {
  uint64_t seed = 0;
  uint32_t num_samples = 0;   // in the training split; at least 1
  uint32_t global_batch = 0;  // samples a step, summed over the ranks; at least 1

  RM_HOST_DEVICE uint32_t steps_per_epoch() const {
    return (num_samples + global_batch - 1) / global_batch;
  }

  // Positions of step `step` (0-based, below steps_per_epoch()) of any epoch.
  RM_HOST_DEVICE PositionRange Batch(uint32_t step) const {
    const uint32_t first = step * global_batch;
    const uint32_t left = num_samples - first;
    return PositionRange{first, left < global_batch ? left : global_batch};
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
