// Philox4x32-10, a counter-based random number generator: the numbers are a pure function of
// (key, counter), so any rank on any device computes the same ones without sharing a state.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
// Thread safety: pure functions.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace ringmaster {

// Four 32-bit words: a counter going in, random bits coming out.
struct Philox4 {
  uint32_t word[4];
};

// Returns the block of 128 random bits that `key` assigns to `counter`.
RM_HOST_DEVICE inline Philox4 Philox(uint64_t key, Philox4 counter) {
  uint32_t key_low = static_cast<uint32_t>(key);
  uint32_t key_high = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter.word[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = Philox4{{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key_low,
                       static_cast<uint32_t>(product1),
                       static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key_high,
                       static_cast<uint32_t>(product0)}};
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  return counter;
}

// What a counter is used for; the last counter word, so that no two uses share random numbers.
enum class RandomUse : uint32_t { kPermutation = 1, kInitialWeights = 2 };

// The counter for item (`index`, `stream`) of `use`.
RM_HOST_DEVICE inline Philox4 PhiloxCounter(RandomUse use, uint32_t stream, uint64_t index) {
  return Philox4{{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), stream,
                  static_cast<uint32_t>(use)}};
}

// Maps 32 random bits to [0, 1), exactly representable in fp32 (24 bits are used).
RM_HOST_DEVICE inline float UnitFloat(uint32_t bits) {
  return static_cast<float>(bits >> 8) * 0x1p-24f;
}

}  // namespace ringmaster
