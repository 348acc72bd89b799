// The tail of the gradient buffer: the record of a step, reduced together with the gradient.
//
// The all-reduced buffer is fp32, so integers travel as limbs of 12 bits: a sum of limbs stays
// below 2^24, and hence exact, for up to 4096 ranks. Every quantity in the tail is an integer, so
// the record does not depend on the order of the reduction or on the world size.
//
// Layout, in floats, after the `num_parameters` gradients:
//   [kLossLimbs)      sum of the per-sample losses, fixed point with quantum 2^-32
//   [kCorrectLimbs)   samples whose largest logit is the label's
//   [kSampleLimbs)    samples gathered
//   [kDigestLimbs)    sum of SampleFingerprint() over the gathered samples, modulo 2^64
//   [kNonFinite)      samples whose loss was not finite (their loss is left out of the sum)
//   [kFlags)          kFlagCount counters: on how many ranks each flag is raised
//   [kRankTimes)      2 * world_size: compute and exposed all-reduce time in microseconds of the
//   step
//                     each rank measured last; a rank writes its own two and zeros elsewhere
//
// In reproducible runs the buffer is of int64 and so is the tail: each integer is one element and
// sums wrap modulo 2^64, of which the digest makes use. Layout, in elements:
//   loss, correct, samples, digest, non-finite: as above, one element each
//   [kWholeOutOfRange)  ranks on which a gradient cannot be represented (kernels/exact.h)
//   [kWholeFlags)       kFlagCount counters
//   [kWholeRankTimes)   2 * world_size: the times in nanoseconds
//
// Thread safety: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/host_device.h"

namespace ringmaster::tail {

inline constexpr int kLimbBits = 12;
inline constexpr int kLimbs = 6;  // 72 bits: a whole uint64
inline constexpr int kMaxWorldSize = 4096;

enum Offset : int {
  kLossLimbs = 0,
  kCorrectLimbs = kLossLimbs + kLimbs,
  kSampleLimbs = kCorrectLimbs + kLimbs,
  kDigestLimbs = kSampleLimbs + kLimbs,
  kNonFinite = kDigestLimbs + kLimbs,
  kFlags = kNonFinite + 1,
};

// Raised by any rank, seen by every rank at the same step.
enum Flag : int {
  kFlagRegroup = 0,  // stop after an agreed step: the world is to change
  kFlagCount = 1,
};

inline constexpr int kRankTimes = int{kFlags} + int{kFlagCount};

// The same in a tail of int64.
enum WholeOffset : int {
  kWholeLoss = 0,
  kWholeCorrect = 1,
  kWholeSamples = 2,
  kWholeDigest = 3,
  kWholeNonFinite = 4,
  kWholeOutOfRange = 5,
  kWholeFlags = 6,
  kWholeRankTimes = int{kWholeFlags} + int{kFlagCount},
};
inline constexpr double kLossQuantum = 0x1p-32;

// Length of the tail in floats.
RM_HOST_DEVICE inline constexpr size_t Size(int world_size) {
  return static_cast<size_t>(kRankTimes) + 2 * static_cast<size_t>(world_size);
}

// Length of a tail of int64, in elements.
RM_HOST_DEVICE inline constexpr size_t WholeSize(int world_size) {
  return static_cast<size_t>(kWholeRankTimes) + 2 * static_cast<size_t>(world_size);
}

// Writes `value` as kLimbs floats, least significant limb first.
RM_HOST_DEVICE inline void PutInteger(uint64_t value, float* limbs) {
  for (int i = 0; i < kLimbs; ++i) {
    limbs[i] = static_cast<float>(value & ((1u << kLimbBits) - 1));
    value >>= kLimbBits;
  }
}

// Reads a sum of integers written by PutInteger on up to kMaxWorldSize ranks, modulo 2^64.
RM_HOST_DEVICE inline uint64_t GetInteger(const float* limbs) {
  uint64_t value = 0;
  for (int i = kLimbs - 1; i >= 0; --i) {
    value = (value << kLimbBits) + static_cast<uint64_t>(limbs[i]);
  }
  return value;
}

// How times stand in a tail of int64.
RM_HOST_DEVICE inline int64_t ToNanoseconds(float us) {
  return static_cast<int64_t>(static_cast<double>(us) * 1000.0);
}
RM_HOST_DEVICE inline float ToMicroseconds(int64_t ns) {
  return static_cast<float>(static_cast<double>(ns) / 1000.0);
}

// A finite per-sample loss (>= 0) in units of kLossQuantum, rounded to nearest. One above 2^31,
// which only a network that has diverged has, counts as 2^31.
RM_HOST_DEVICE inline uint64_t QuantizeLoss(float loss) {
  constexpr float kMost = 0x1p31f;
  return static_cast<uint64_t>(static_cast<double>(loss < kMost ? loss : kMost) * 0x1p32 + 0.5);
}

}  // namespace ringmaster::tail

namespace ringmaster {

// What one rank contributes to the tail of one step, or what all ranks contributed together.
struct StepRecord {
  uint64_t loss_sum_quanta = 0;  // sum of losses in units of tail::kLossQuantum
  uint64_t correct = 0;
  uint64_t samples = 0;
  uint64_t digest = 0;
  uint32_t non_finite = 0;
  uint32_t out_of_range = 0;              // ranks; only in reproducible runs
  uint32_t flags[tail::kFlagCount] = {};  // ranks that raised each flag

  double loss_sum() const { return static_cast<double>(loss_sum_quanta) * tail::kLossQuantum; }
  double mean_loss() const { return samples == 0 ? 0 : loss_sum() / static_cast<double>(samples); }
  double accuracy() const {
    return samples == 0 ? 0 : static_cast<double>(correct) / static_cast<double>(samples);
  }
  friend bool operator==(const StepRecord&, const StepRecord&) = default;
};

// Writes the fixed part of the tail (not the rank times) to `out`, tail::kRankTimes floats.
RM_HOST_DEVICE inline void WriteRecord(const StepRecord& record, float* out) {
  tail::PutInteger(record.loss_sum_quanta, out + tail::kLossLimbs);
  tail::PutInteger(record.correct, out + tail::kCorrectLimbs);
  tail::PutInteger(record.samples, out + tail::kSampleLimbs);
  tail::PutInteger(record.digest, out + tail::kDigestLimbs);
  out[tail::kNonFinite] = static_cast<float>(record.non_finite);
  for (int i = 0; i < tail::kFlagCount; ++i) {
    out[tail::kFlags + i] = static_cast<float>(record.flags[i]);
  }
}

// The same to a tail of int64, tail::kWholeRankTimes elements.
RM_HOST_DEVICE inline void WriteRecord(const StepRecord& record, int64_t* out) {
  out[tail::kWholeLoss] = static_cast<int64_t>(record.loss_sum_quanta);
  out[tail::kWholeCorrect] = static_cast<int64_t>(record.correct);
  out[tail::kWholeSamples] = static_cast<int64_t>(record.samples);
  out[tail::kWholeDigest] = static_cast<int64_t>(record.digest);
  out[tail::kWholeNonFinite] = record.non_finite;
  out[tail::kWholeOutOfRange] = record.out_of_range;
  for (int i = 0; i < tail::kFlagCount; ++i) out[tail::kWholeFlags + i] = record.flags[i];
}

// Reads back what WriteRecord wrote, or the sum of what up to tail::kMaxWorldSize ranks wrote.
RM_HOST_DEVICE inline StepRecord ReadRecord(const float* in) {
  StepRecord record;
  record.loss_sum_quanta = tail::GetInteger(in + tail::kLossLimbs);
  record.correct = tail::GetInteger(in + tail::kCorrectLimbs);
  record.samples = tail::GetInteger(in + tail::kSampleLimbs);
  record.digest = tail::GetInteger(in + tail::kDigestLimbs);
  record.non_finite = static_cast<uint32_t>(in[tail::kNonFinite]);
  for (int i = 0; i < tail::kFlagCount; ++i) {
    record.flags[i] = static_cast<uint32_t>(in[tail::kFlags + i]);
  }
  return record;
}

RM_HOST_DEVICE inline StepRecord ReadRecord(const int64_t* in) {
  StepRecord record;
  record.loss_sum_quanta = static_cast<uint64_t>(in[tail::kWholeLoss]);
  record.correct = static_cast<uint64_t>(in[tail::kWholeCorrect]);
  record.samples = static_cast<uint64_t>(in[tail::kWholeSamples]);
  record.digest = static_cast<uint64_t>(in[tail::kWholeDigest]);
  record.non_finite = static_cast<uint32_t>(in[tail::kWholeNonFinite]);
  record.out_of_range = static_cast<uint32_t>(in[tail::kWholeOutOfRange]);
  for (int i = 0; i < tail::kFlagCount; ++i) {
    record.flags[i] = static_cast<uint32_t>(in[tail::kWholeFlags + i]);
  }
  return record;
}

}  // namespace ringmaster
