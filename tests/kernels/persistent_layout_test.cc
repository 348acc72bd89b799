// Runs the persistent kernel's two matrix products on a warp emulated on the host, from the PTX
// manual's definition of each instruction, and compares them with plain loops: every index of
// layout.h and every register order of kernel.cuh is covered by exact integers.
#include <array>
#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/persistent/layout.h"

namespace ringmaster::persistent {
namespace {

constexpr int kLanes = 32;
template <typename T>
using PerLane = std::array<T, kLanes>;
using Matrix = PerLane<uint32_t>;  // one 8x8 matrix of 16-bit elements: a register in each lane

// An fp16 pair stands for itself here: two integers of 16 bits.
uint32_t Pair(int low, int high) {
  return (static_cast<uint32_t>(high) << 16) | (static_cast<uint32_t>(low) & 0xFFFFu);
}
int Half(uint32_t pair, int which) {
  return static_cast<int16_t>(static_cast<uint16_t>(pair >> (16 * which)));
}

using Image = std::vector<std::array<uint8_t, kRowBytes>>;

uint32_t Load16(const uint8_t* p) { return p[0] | (static_cast<uint32_t>(p[1]) << 8); }

// ldmatrix.x4: lane l gives row l % 8 of matrix l / 8; lane l gets row l / 4, columns 2 (l % 4)
// and the next one. With .trans the matrix is transposed first.
std::array<Matrix, 4> LoadMatrices(const PerLane<const uint8_t*>& rows, bool transposed) {
  std::array<Matrix, 4> out;
  for (int m = 0; m < 4; ++m) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int r = lane / 4, c = 2 * (lane % 4);
      const auto element = [&](int row, int column) {
        return Load16(rows[static_cast<size_t>(8 * m + row)] + 2 * column);
      };
      const uint32_t low = transposed ? element(c, r) : element(r, c);
      const uint32_t high = transposed ? element(c + 1, r) : element(r, c + 1);
      out[static_cast<size_t>(m)][static_cast<size_t>(lane)] = low | (high << 16);
    }
  }
  return out;
}

// movmatrix.trans.
Matrix Transpose(const Matrix& in) {
  Matrix out;
  for (int lane = 0; lane < kLanes; ++lane) {
    const int r = lane / 4, c = 2 * (lane % 4);
    const auto element = [&](int row, int column) {
      return Half(in[static_cast<size_t>(4 * row + column / 2)], column % 2);
    };
    out[static_cast<size_t>(lane)] = Pair(element(c, r), element(c + 1, r));
  }
  return out;
}

// mma.m16n8k16 on integers.
void MultiplyAdd(PerLane<std::array<int, 4>>* c, const std::array<Matrix, 4>& a, const Matrix& b0,
                 const Matrix& b1) {
  const auto A = [&](int row, int k) {
    const size_t which = static_cast<size_t>((row >= 8 ? 1 : 0) + (k >= 8 ? 2 : 0));
    return Half(a[which][static_cast<size_t>(4 * (row % 8) + (k % 8) / 2)], k % 2);
  };
  const auto B = [&](int k, int n) {
    return Half((k >= 8 ? b1 : b0)[static_cast<size_t>(4 * n + (k % 8) / 2)], k % 2);
  };
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int e = 0; e < 4; ++e) {
      const int row = lane / 4 + (e >= 2 ? 8 : 0), column = 2 * (lane % 4) + e % 2;
      for (int k = 0; k < 16; ++k) {
        (*c)[static_cast<size_t>(lane)][static_cast<size_t>(e)] += A(row, k) * B(k, column);
      }
    }
  }
}

Matrix EvenBytes(const Matrix& x) {
  Matrix out;
  for (size_t i = 0; i < kLanes; ++i) out[i] = x[i] & 0x00FF00FFu;
  return out;
}
Matrix OddBytes(const Matrix& x) {
  Matrix out;
  for (size_t i = 0; i < kLanes; ++i) out[i] = (x[i] >> 8) & 0x00FF00FFu;
  return out;
}

Image RandomImages(uint32_t seed) {
  std::mt19937 random(seed);
  Image images(kMaxBatch);
  for (auto& image : images) {
    for (uint8_t& pixel : image) pixel = static_cast<uint8_t>(random());
  }
  return images;
}

PerLane<const uint8_t*> Rows(const Image& images, int group, int tile) {
  PerLane<const uint8_t*> rows;
  for (int lane = 0; lane < kLanes; ++lane) {
    rows[static_cast<size_t>(lane)] =
        &images[static_cast<size_t>(32 * group + lane)][static_cast<size_t>(tile * kTilePixels)];
  }
  return rows;
}

TEST(PersistentLayout, EveryTileHasOneWarp) {
  std::multiset<int> tiles;
  for (int warp = 0; warp < kComputeWarps; ++warp) {
    for (int i = 0; i < kTilesPerWarp; ++i) {
      if (TileOf(warp, i) < kTiles) tiles.insert(TileOf(warp, i));
    }
  }
  ASSERT_EQ(tiles.size(), static_cast<size_t>(kTiles));
  for (int tile = 0; tile < kTiles; ++tile) EXPECT_EQ(tiles.count(tile), 1u) << tile;
}

TEST(PersistentLayout, RowsOfEightSamplesFallInDifferentBanks) {
  std::set<int> banks;
  for (int row = 0; row < 8; ++row) banks.insert(row * kRowBytes / 4 % 32 / 4);
  EXPECT_EQ(banks.size(), 8u);
}

TEST(PersistentLayout, ForwardProduct) {
  const Image images = RandomImages(1);
  constexpr int kTile = 17;
  std::mt19937 random(2);
  int w[kTilePixels][kUnitsPerBlock];
  for (auto& row : w) {
    for (int& x : row) x = static_cast<int>(random() % 201) - 100;
  }
  Matrix even, odd;  // the weights as the lanes keep them
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto weight = [&](int e) { return w[PixelOf(lane, e)][UnitOf(lane, e)]; };
    even[static_cast<size_t>(lane)] = Pair(weight(0), weight(1));
    odd[static_cast<size_t>(lane)] = Pair(weight(2), weight(3));
  }
  const Matrix b0 = Transpose(even), b1 = Transpose(odd);
  for (int group = 0; group < kMaxBatch / 32; ++group) {
    const auto x = LoadMatrices(Rows(images, group, kTile), false);
    for (int half = 0; half < 2; ++half) {
      const Matrix& x0 = x[static_cast<size_t>(2 * half)];
      const Matrix& x1 = x[static_cast<size_t>(2 * half + 1)];
      PerLane<std::array<int, 4>> c{};
      MultiplyAdd(&c, {EvenBytes(x0), EvenBytes(x1), OddBytes(x0), OddBytes(x1)}, b0, b1);
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int e = 0; e < 4; ++e) {
          const int sample = 32 * group + 16 * half + lane / 4 + (e >= 2 ? 8 : 0);
          const int unit = 2 * (lane % 4) + e % 2;
          int want = 0;
          for (int p = 0; p < kTilePixels; ++p) {
            want +=
                images[static_cast<size_t>(sample)][static_cast<size_t>(kTile * kTilePixels + p)] *
                w[p][unit];
          }
          ASSERT_EQ(c[static_cast<size_t>(lane)][static_cast<size_t>(e)], want) << lane << " " << e;
        }
      }
    }
  }
}

TEST(PersistentLayout, WeightGradient) {
  const Image images = RandomImages(3);
  constexpr int kTile = 44;
  std::mt19937 random(4);
  std::vector<std::array<int, kUnitsPerBlock>> d(kMaxBatch);
  for (auto& row : d) {
    for (int& x : row) x = static_cast<int>(random() % 201) - 100;
  }
  // The operand, written as HiddenGradient() writes it.
  std::vector<std::array<Matrix, 2>> operand(kMaxBatch / 16);
  for (int sample = 0; sample < kMaxBatch; sample += 2) {
    for (int unit = 0; unit < kUnitsPerBlock; ++unit) {
      const int in_group = sample % 16;
      operand[static_cast<size_t>(sample / 16)][static_cast<size_t>(GradientRegister(in_group))]
             [static_cast<size_t>(GradientLane(in_group, unit))] =
                 Pair(d[static_cast<size_t>(sample)][static_cast<size_t>(unit)],
                      d[static_cast<size_t>(sample + 1)][static_cast<size_t>(unit)]);
    }
  }
  PerLane<std::array<int, 4>> c{};
  for (int group = 0; group < kMaxBatch / 32; ++group) {
    const auto x = LoadMatrices(Rows(images, group, kTile), true);
    for (int half = 0; half < 2; ++half) {
      const Matrix& x0 = x[static_cast<size_t>(2 * half)];
      const Matrix& x1 = x[static_cast<size_t>(2 * half + 1)];
      const auto& b = operand[static_cast<size_t>(2 * group + half)];
      MultiplyAdd(&c, {EvenBytes(x0), OddBytes(x0), EvenBytes(x1), OddBytes(x1)}, b[0], b[1]);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int e = 0; e < 4; ++e) {
      const size_t pixel = static_cast<size_t>(kTile * kTilePixels + PixelOf(lane, e));
      int want = 0;
      for (size_t s = 0; s < kMaxBatch; ++s) {
        want += images[s][pixel] * d[s][static_cast<size_t>(UnitOf(lane, e))];
      }
      ASSERT_EQ(c[static_cast<size_t>(lane)][static_cast<size_t>(e)], want) << lane << " " << e;
    }
  }
}

}  // namespace
}  // namespace ringmaster::persistent
