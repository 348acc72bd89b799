// How the persistent kernel cuts the work up: over blocks, warps, lanes and registers. Pure index
// arithmetic for host and device, so that a host test can check it against the definition of the
// instructions.
//
// The network is inputs -> hidden -> classes. One cluster of C blocks holds it: block r owns the 8
// hidden units [8 r, 8 r + 8) and, of each batch, the 128 / C samples [r 128 / C, ...), for which
// it computes softmax and loss. Eight compute warps in each block share its pixels: a tile is 16
// pixels, and a warp owns the same tiles in the forward product (whose sum over pixels it computes
// in part) and in the weight gradient, so the weights never leave its registers.
//
// A batch lies in shared memory as bytes, [sample, kRowBytes]; kRowBytes / 4 is 20 modulo 32, so
// that 16 bytes of 8 consecutive samples fall in different banks. Only pixels that are not zero in
// every training image are kept ("live"); the pixel after the last live one is always 255, that is
// 1.0, and its weights are the biases; the rest of a row is zero.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace ringmaster::persistent {

inline constexpr int kMaxBatch = 128;
inline constexpr int kUnitsPerBlock = 8;
inline constexpr int kComputeWarps = 8;
inline constexpr int kThreads = 32 * (kComputeWarps + 1);  // one warp more: loads and layer 2
inline constexpr int kTilePixels = 16;
inline constexpr int kTiles = 45;
inline constexpr int kRowBytes = kTiles * kTilePixels;  // 720
inline constexpr int kMaxLivePixels = kRowBytes - 1;    // one is the bias
inline constexpr int kTilesPerWarp = 6;
inline constexpr int kLogits = 12;      // classes, padded
inline constexpr int kMaxClasses = 11;  // the last padding slot carries the stop flag
inline constexpr int kStopSlot = kLogits - 1;

// The tile that is `index`-th of `warp`; kTiles or more means none. The warps with one tile fewer
// are those that share a scheduler with the ninth warp or with a warp that has one more.
RM_HOST_DEVICE inline constexpr int TileOf(int warp, int index) {
  return index < kTilesPerWarp - 1 ? warp + kComputeWarps * index
                                   : (warp < 3 ? kTiles : kComputeWarps * index + warp - 3);
}

// Which weights a lane keeps of a tile, as elements 0..3: the accumulator layout of mma.m16n8 with
// the rows renumbered so that a lane's two pixels are neighbours.
RM_HOST_DEVICE inline constexpr int PixelOf(int lane, int element) {
  return 2 * (lane / 4) + element / 2;
}
RM_HOST_DEVICE inline constexpr int UnitOf(int lane, int element) {
  return 2 * (lane % 4) + element % 2;
}

// Where the hidden gradient of (sample in a group of 16, unit) goes in the B operand of the weight
// gradient: the lane and the register (0 or 1); odd samples are the high halves.
RM_HOST_DEVICE inline constexpr int GradientLane(int sample, int unit) {
  return 4 * unit + (sample % 8) / 2;
}
RM_HOST_DEVICE inline constexpr int GradientRegister(int sample) { return sample / 8; }

}  // namespace ringmaster::persistent
