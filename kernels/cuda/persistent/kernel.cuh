// The persistent training kernel: many steps of a two-layer perceptron in one launch of one
// thread-block cluster. layout.h says how the work is cut up. One step, in each block:
//   forward    H[128, 8] = X W1: each warp multiplies its own pixels, the sums meet in shared
//   memory logits     this block's part of H W2 goes to the owner of each sample (distributed
//   shared memory) softmax    the owner adds the parts, computes loss and gradient, and sends the
//   latter to all hidden     dH[128, 8] from the gradient of the logits backward   dW1 = X^T dH:
//   each warp for its own pixels, in the layout in which it keeps W1 update     Adam or SGD in
//   registers
// The ninth warp fetches the next batch meanwhile and updates the second layer.
//
// Precision: the tensor cores multiply fp16 exactly and add in fp32. A pixel 0..255 is exact in
// fp16; the fp32 operand (weights or hidden gradient), scaled by a power of two, is split in a high
// and a low fp16 term, which keeps 22 to 24 bits of it. A pixel byte, zero-extended, IS the fp16
// subnormal pixel * 2^-24, so that conversion costs one instruction for two pixels.
#pragma once

#include <new>

#include "common/sampling_plan.h"
#include "common/step_tail.h"
#include "kernels/cuda/persistent/kernel.h"
#include "kernels/cuda/persistent/layout.h"
#include "kernels/cuda/persistent/ptx.cuh"

namespace ringmaster::persistent {

// |weight| must stay below 65504 / 4096 = 15.9 and |hidden gradient| of a sample below 31.9; beyond
// that the loss becomes not finite and the record shows it.
constexpr float kWeightScale = 4096.0f;
constexpr float kGradientScale = 2048.0f;

template <int kBlocks>
struct alignas(128) Shared {
  static constexpr int kOwned = kMaxBatch / kBlocks;
  static constexpr uint32_t kExchangeBytes = kMaxBatch * kLogits * sizeof(float);

  uint8_t images[2][kMaxBatch][kRowBytes];
  // Each warp's part of the hidden sums. Once they are added up, [0] holds H and [1] the hidden
  // gradient as B operands ([group of 16 samples][lane][high 0, high 1, low 0, low 1]).
  float sums[kComputeWarps][kMaxBatch][kUnitsPerBlock];
  float logit_parts[kBlocks][kOwned][kLogits];  // of the owned samples, from each block
  float logit_gradient[kMaxBatch][kLogits];
  float weights2[kUnitsPerBlock][kLogits];
  float bias2[kLogits];
  float one;    // a hidden unit for the bias
  float rate;   // Adam's alpha or SGD's learning rate, of this step
  float scale;  // 1 / samples of this step
  float stop;
  uint32_t labels[2][kOwned];
  uint64_t images_full[2];   // bytes of a batch arrived
  uint64_t images_empty[2];  // every warp of the cluster is done with a batch
  uint64_t parts_full;
  uint64_t gradient_full;
  long long profile[kStageCount];
  alignas(8) uint8_t order[sizeof(Permutation)];  // of the epoch
};

constexpr uint32_t kNoLabel = 255;

__device__ __forceinline__ void BlockBarrier(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(kThreads) : "memory");
}
__device__ __forceinline__ void BlockBarrierArrive(int id) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(kThreads) : "memory");
}
enum BlockBarrierId { kSumsFree = 1, kSumsReady = 2, kGradientReady = 3 };

// Two of the four pixel bytes of a register, as two fp16: bytes 0 and 2 (kOdd 0) or 1 and 3.
template <bool kNormal, int kOdd>
__device__ __forceinline__ uint32_t PixelPair(uint32_t bytes) {
  if constexpr (!kNormal) {
    return kOdd ? __byte_perm(bytes, 0u, 0x4341) : (bytes & 0x00FF00FFu);
  } else {
    const uint32_t biased =  // 0x6400 is 1024, whose last place is 1
        kOdd ? __byte_perm(bytes, 0x64646464u, 0x4341) : ((bytes & 0x00FF00FFu) | 0x64006400u);
    const __half2 value =
        __hsub2(*reinterpret_cast<const __half2*>(&biased), __half2half2(__ushort_as_half(0x6400)));
    return *reinterpret_cast<const uint32_t*>(&value);
  }
}

template <bool kNormal>
constexpr float kPixelUnit = kNormal ? 1.0f : 0x1p-24f;

// An fp32 pair as fp16 terms whose sum it is.
template <int kTerms>
__device__ __forceinline__ void Split(float low, float high, uint32_t* high_term,
                                      uint32_t* low_term) {
  *high_term = PackHalves(low, high);
  if constexpr (kTerms == 2) {
    const float2 kept = UnpackHalves(*high_term);
    *low_term = PackHalves(low - kept.x, high - kept.y);
  }
}

// Keras's form (keras/src/optimizers/adam.py); `rate` is alpha, or SGD's learning rate. The
// constants stay in the kernel's arguments, where instructions read them without a register.
__device__ __forceinline__ void Update(const KernelArguments& a, float rate, float gradient,
                                       float* w, float* m, float* v) {
  if (a.adam) {
    *m = fmaf(gradient - *m, a.one_minus_beta1, *m);
    *v = fmaf(fmaf(gradient, gradient, -*v), a.one_minus_beta2, *v);
    *w = fmaf(-rate * *m, Reciprocal(SquareRoot(*v) + a.epsilon), *w);
  } else {
    *w = fmaf(-rate, gradient, *w);
  }
}

template <int kBlocks, int kTerms, bool kNormal, bool kMulticast, bool kProfile>
class Trainer {
 public:
  using SharedMemory = Shared<kBlocks>;
  static constexpr int kOwned = SharedMemory::kOwned;

  __device__ Trainer(const KernelArguments& arguments, SharedMemory& shared)
      : a_(arguments),
        s_(shared),
        warp_(__shfl_sync(~0u, threadIdx.x / 32, 0)),
        lane_(threadIdx.x % 32),
        rank_(BlockInCluster()) {}

  __device__ void Run() {
    Prepare();
    if (warp_ == kComputeWarps) {
      Help();
    } else {
      Compute();
    }
    ClusterBarrier();  // nobody leaves while others may still write to its shared memory
  }

 private:
  __device__ void Wait(uint64_t& barrier, uint32_t parity) {
    const uint32_t address = SharedAddress(&barrier);
    if (BarrierTryWait(address, parity)) return;
    const uint32_t start = clock();
    while (!BarrierTryWait(address, parity)) {
      if (static_cast<uint32_t>(clock()) - start > a_.timeout_cycles) {
        __trap();  // the launch fails: better than a GPU that hangs
      }
    }
  }

  __device__ void Prepare() {
    for (int i = threadIdx.x; i < kBlocks * kOwned * kLogits; i += kThreads) {
      (&s_.logit_parts[0][0][0])[i] = 0;
    }
    for (int i = threadIdx.x; i < kMaxBatch * kLogits; i += kThreads) {
      (&s_.logit_gradient[0][0])[i] = 0;
    }
    if (threadIdx.x < kUnitsPerBlock * kLogits) (&s_.weights2[0][0])[threadIdx.x] = 0;
    if (threadIdx.x < kLogits) s_.bias2[threadIdx.x] = 0;
    if (threadIdx.x == 0) {
      s_.one = 1;
      s_.stop = 0;
      for (int i = 0; i < kStageCount; ++i) s_.profile[i] = 0;
      for (int i = 0; i < 2; ++i) {
        BarrierInit(SharedAddress(&s_.images_full[i]), 1);
        BarrierInit(SharedAddress(&s_.images_empty[i]), kBlocks * kComputeWarps);
      }
      BarrierInit(SharedAddress(&s_.parts_full), 1);
      BarrierInit(SharedAddress(&s_.gradient_full), 1);
      BarrierInitFence();
      BarrierExpect(SharedAddress(&s_.parts_full), SharedMemory::kExchangeBytes);
      BarrierExpect(SharedAddress(&s_.gradient_full), SharedMemory::kExchangeBytes);
    }
    ClusterBarrier();
  }

  // ---- the compute warps

  __device__ void Compute() {
    LoadWeights();
    for (uint32_t k = 0; k < a_.num_steps; ++k) {
      const int buffer = k & 1;
      Stamp(-1);
      Wait(s_.images_full[buffer], (k >> 1) & 1);
      Stamp(kStageWaitImages);
      Forward(buffer);
      Stamp(kStageForward);
      float h[4];
      Reduce(h);
      Stamp(kStageReduce);
      SendLogitParts(h);
      Stamp(kStageLogits);
      if (warp_ < kOwned / 2) Softmax(k);
      Stamp(kStageSoftmax);
      Wait(s_.gradient_full, k & 1);
      if (threadIdx.x == 0) {
        BarrierExpect(SharedAddress(&s_.gradient_full), SharedMemory::kExchangeBytes);
      }
      Stamp(kStageWaitGradient);
      if (s_.logit_gradient[0][kStopSlot] != 0) break;
      HiddenGradient(h);
      BlockBarrier(kGradientReady);
      Stamp(kStageHidden);
      Backward(buffer);
    }
    StoreWeights();
    if (kProfile && threadIdx.x == 0 && rank_ == 0) {
      for (int i = 0; i < kStageCount; ++i) a_.profile[i] = s_.profile[i];
    }
  }

  __device__ void Stamp(int stage) {
    if constexpr (kProfile) {
      if (threadIdx.x == 0 && rank_ == 0) {
        const long long now = clock64();
        if (stage >= 0) s_.profile[stage] += now - stamp_;
        stamp_ = now;
      }
    }
  }

  // f(weight, its offset in the flat layout) for each pair of weights of this lane.
  template <typename Function>
  __device__ void ForWeightPairs(Function f) {
#pragma unroll
    for (int i = 0; i < kTilesPerWarp; ++i) {
      const int tile = TileOf(warp_, i);
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        const int row = tile < kTiles ? a_.weight_rows[kTilePixels * tile + PixelOf(lane_, e)] : -1;
        const int unit = kUnitsPerBlock * rank_ + UnitOf(lane_, e);
        f(i, e, row < 0 ? -1 : row * (kUnitsPerBlock * kBlocks) + unit);
      }
    }
  }

  __device__ void LoadWeights() {
    ForWeightPairs([this](int i, int e, int offset) {
      const float2 zero = make_float2(0, 0);
      const auto load = [offset, zero](const float* from) {
        return offset < 0 ? zero : *reinterpret_cast<const float2*>(from + offset);
      };
      const float2 w = load(a_.parameters);
      const float2 m = load(a_.first_moment);
      const float2 v = load(a_.second_moment);
      w_[i][e] = w.x, w_[i][e + 1] = w.y;
      m_[i][e] = m.x, m_[i][e + 1] = m.y;
      v_[i][e] = v.x, v_[i][e + 1] = v.y;
    });
  }

  __device__ void StoreWeights() {
    ForWeightPairs([this](int i, int e, int offset) {
      if (offset < 0) return;
      *reinterpret_cast<float2*>(a_.parameters + offset) = make_float2(w_[i][e], w_[i][e + 1]);
      *reinterpret_cast<float2*>(a_.first_moment + offset) = make_float2(m_[i][e], m_[i][e + 1]);
      *reinterpret_cast<float2*>(a_.second_moment + offset) = make_float2(v_[i][e], v_[i][e + 1]);
    });
  }

  // This lane's row for ldmatrix: sample `lane` of each group of 32.
  __device__ uint32_t ImageAddress(int buffer) {
    return SharedAddress(&s_.images[buffer][lane_][0]);
  }

  __device__ void Forward(int buffer) {
    float c[kMaxBatch / 16][4] = {};
    const uint32_t images = ImageAddress(buffer);
#pragma unroll
    for (int i = 0; i < kTilesPerWarp; ++i) {
      const int tile = TileOf(warp_, i);
      if (tile < kTiles) {
        uint32_t b[4];
        WeightOperand(i, b);
#pragma unroll
        for (int group = 0; group < kMaxBatch / 32; ++group) {
          uint32_t x[4];
          LoadMatrices(images + group * 32 * kRowBytes + tile * kTilePixels, x);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const uint32_t a[4] = {
                PixelPair<kNormal, 0>(x[2 * half]), PixelPair<kNormal, 0>(x[2 * half + 1]),
                PixelPair<kNormal, 1>(x[2 * half]), PixelPair<kNormal, 1>(x[2 * half + 1])};
            float(&sum)[4] = c[2 * group + half];
            MultiplyAdd(sum, a, b[0], b[1]);
            if constexpr (kTerms == 2) MultiplyAdd(sum, a, b[2], b[3]);
          }
        }
      }
    }
    BlockBarrier(kSumsFree);
#pragma unroll
    for (int i = 0; i < kMaxBatch / 16; ++i) {
      float* const sums = &s_.sums[warp_][16 * i + lane_ / 4][2 * (lane_ % 4)];
      *reinterpret_cast<float2*>(sums) = make_float2(c[i][0], c[i][1]);
      *reinterpret_cast<float2*>(sums + 8 * kUnitsPerBlock) = make_float2(c[i][2], c[i][3]);
    }
    BlockBarrier(kSumsReady);
  }

  // Tile i's weights as the B operand: high term (even, odd pixels), then low term.
  __device__ void WeightOperand(int i, uint32_t (&b)[4]) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      uint32_t high, low = 0;
      Split<kTerms>(w_[i][2 * odd] * kWeightScale, w_[i][2 * odd + 1] * kWeightScale, &high, &low);
      b[odd] = TransposeMatrix(high);
      if constexpr (kTerms == 2) b[2 + odd] = TransposeMatrix(low);
    }
  }

  // From here to the hidden gradient, a lane works on sample 16 warp + lane / 2 and on the four
  // units 4 (lane % 2) and on.
  __device__ int Sample() const { return 16 * warp_ + lane_ / 2; }
  __device__ int FirstUnit() const { return 4 * (lane_ % 2); }

  __device__ void Reduce(float (&h)[4]) {
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kComputeWarps; ++i) {
      const float4 part = *reinterpret_cast<const float4*>(&s_.sums[i][Sample()][FirstUnit()]);
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    constexpr float kUnscale = 1.0f / (255.0f * kWeightScale * kPixelUnit<kNormal>);
    const auto relu = [](float x) { return x < 0 ? 0.0f : x; };  // NaN stays NaN
    h[0] = relu(sum.x * kUnscale), h[1] = relu(sum.y * kUnscale);
    h[2] = relu(sum.z * kUnscale), h[3] = relu(sum.w * kUnscale);
    __syncwarp();  // the rows of this warp's samples are its own from now on
    *reinterpret_cast<float4*>(&s_.sums[0][Sample()][FirstUnit()]) =
        make_float4(h[0], h[1], h[2], h[3]);
  }

  __device__ void SendLogitParts(const float (&h)[4]) {
    float z[kLogits] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4* const row = reinterpret_cast<const float4*>(&s_.weights2[FirstUnit() + i][0]);
#pragma unroll
      for (int j = 0; j < kLogits / 4; ++j) {
        const float4 w = row[j];
        z[4 * j] = fmaf(h[i], w.x, z[4 * j]);
        z[4 * j + 1] = fmaf(h[i], w.y, z[4 * j + 1]);
        z[4 * j + 2] = fmaf(h[i], w.z, z[4 * j + 2]);
        z[4 * j + 3] = fmaf(h[i], w.w, z[4 * j + 3]);
      }
    }
    // The two lanes of a sample swap halves of the classes, and each sends the sum of one half.
    constexpr int kHalf = kLogits / 2;
    const bool upper = lane_ % 2;
    float sum[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float other = __shfl_xor_sync(~0u, upper ? z[i] : z[kHalf + i], 1);
      sum[i] = (upper ? z[kHalf + i] : z[i]) + other;
    }
    const uint32_t owner = Sample() / kOwned;
    const uint32_t to = MapToBlock(
        SharedAddress(&s_.logit_parts[rank_][Sample() % kOwned][upper ? kHalf : 0]), owner);
    const uint32_t barrier = MapToBlock(SharedAddress(&s_.parts_full), owner);
#pragma unroll
    for (int i = 0; i < kHalf; i += 2) {
      StoreAsync(to + 4 * i, barrier, make_float2(sum[i], sum[i + 1]));
    }
  }

  // Each warp does two of the owned samples, with 16 lanes for the classes of each.
  __device__ void Softmax(uint32_t k) {
    const int row = 2 * warp_ + lane_ / 16;
    const int c = lane_ % 16;
    const uint32_t label = s_.labels[k & 1][row];
    const bool is_class = c < a_.classes;
    float z = is_class ? s_.bias2[c] : -INFINITY;
    Wait(s_.parts_full, k & 1);
    if (threadIdx.x == 0) {
      BarrierExpect(SharedAddress(&s_.parts_full), SharedMemory::kExchangeBytes);
    }
    if (is_class) {
      float part[4] = {};  // short chains
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) part[i % 4] += s_.logit_parts[i][row][c];
      z += (part[0] + part[1]) + (part[2] + part[3]);
    }
    float largest = z;
#pragma unroll
    for (int i = 8; i > 0; i /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, i));
    const float e = expf(z - largest);
    float total = e;
#pragma unroll
    for (int i = 8; i > 0; i /= 2) total += __shfl_xor_sync(~0u, total, i);
    const bool valid = label != kNoLabel;
    float gradient =
        valid && is_class ? e / total - (c == static_cast<int>(label) ? 1.0f : 0.0f) : 0.0f;
    if (rank_ == 0 && row == 0 && c == kStopSlot) gradient = s_.stop;
    SendLogitGradient(gradient);
    Record(k, z, largest, total, label);
  }

  // Sends the rows of this warp's two samples to all blocks: 8 lanes for the 16-byte pieces of the
  // two rows, 4 blocks at a time.
  __device__ void SendLogitGradient(float gradient) {
    const int row = (lane_ / 4) % 2;
    const int piece = lane_ % 4;
    const int from = 16 * row + 4 * piece;
    float4 v;
    v.x = __shfl_sync(~0u, gradient, from);
    v.y = __shfl_sync(~0u, gradient, from + 1);
    v.z = __shfl_sync(~0u, gradient, from + 2);
    v.w = __shfl_sync(~0u, gradient, from + 3);
    if (piece >= kLogits / 4) return;
    const uint32_t to =
        SharedAddress(&s_.logit_gradient[kOwned * rank_ + 2 * warp_ + row][4 * piece]);
    const uint32_t barrier = SharedAddress(&s_.gradient_full);
#pragma unroll
    for (int i = 0; i < kBlocks; i += 4) {
      const uint32_t block = i + lane_ / 8;
      StoreAsync(MapToBlock(to, block), MapToBlock(barrier, block), v);
    }
  }

  __device__ void Record(uint32_t k, float z, float largest, float total, uint32_t label) {
    const uint32_t best = __ballot_sync(~0u, z == largest) >> (lane_ & 16);
    const float label_logit = __shfl_sync(~0u, z, (lane_ & 16) | (label & 15));
    if (lane_ % 16 != 0 || label == kNoLabel) return;
    const float loss = logf(total) + (largest - label_logit);
    DeviceRecord& record = a_.records[k];
    if (loss < INFINITY) {  // false for NaN
      atomicAdd(&record.loss_sum_quanta, static_cast<unsigned long long>(tail::QuantizeLoss(loss)));
      if (__ffs(best & 0xFFFFu) == static_cast<int>(label) + 1) atomicAdd(&record.correct, 1ull);
    } else {
      atomicAdd(&record.non_finite, 1ull);
    }
  }

  __device__ void HiddenGradient(const float (&h)[4]) {
    float d[4] = {};
    const float4* const gradient = reinterpret_cast<const float4*>(&s_.logit_gradient[Sample()][0]);
#pragma unroll
    for (int j = 0; j < kLogits / 4; ++j) {
      const float4 g = gradient[j];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 w = *reinterpret_cast<const float4*>(&s_.weights2[FirstUnit() + i][4 * j]);
        d[i] = fmaf(g.x, w.x, fmaf(g.y, w.y, fmaf(g.z, w.z, fmaf(g.w, w.w, d[i]))));
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] = h[i] > 0 ? d[i] * kGradientScale : 0.0f;
    // Neighbouring samples (lanes two apart) swap units, so that each has two units of both.
    const int sample = lane_ / 2;  // of the warp's 16
    const bool odd = sample % 2;
    const float other0 = __shfl_xor_sync(~0u, odd ? d[0] : d[2], 2);
    const float other1 = __shfl_xor_sync(~0u, odd ? d[1] : d[3], 2);
    uint32_t* const operand = reinterpret_cast<uint32_t*>(&s_.sums[1][16 * warp_][0]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float other = i ? other1 : other0;
      const float mine = odd ? d[2 + i] : d[i];
      uint32_t high, low = 0;
      Split<kTerms>(odd ? other : mine, odd ? mine : other, &high, &low);
      const int unit = FirstUnit() + (odd ? 2 : 0) + i;
      uint32_t* const to = operand + 4 * GradientLane(sample, unit) + GradientRegister(sample);
      to[0] = high;
      if constexpr (kTerms == 2) to[2] = low;
    }
  }

  __device__ void Backward(int buffer) {
    const uint32_t images = ImageAddress(buffer);
    constexpr int kTogether = 3;  // independent sums, to hide the latency of the tensor cores
#pragma unroll
    for (int first = 0; first < kTilesPerWarp; first += kTogether) {
      float c[kTogether][kTerms][4] = {};
#pragma unroll
      for (int group = 0; group < kMaxBatch / 32; ++group) {
        uint4 d[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          d[half] = reinterpret_cast<const uint4*>(&s_.sums[1][32 * group + 16 * half][0])[lane_];
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int tile = TileOf(warp_, first + i);
          if (tile < kTiles) {
            uint32_t x[4];
            LoadMatricesTransposed(images + group * 32 * kRowBytes + tile * kTilePixels, x);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const uint32_t a[4] = {
                  PixelPair<kNormal, 0>(x[2 * half]), PixelPair<kNormal, 1>(x[2 * half]),
                  PixelPair<kNormal, 0>(x[2 * half + 1]), PixelPair<kNormal, 1>(x[2 * half + 1])};
              const uint4& b = d[half];
              MultiplyAdd(c[i][0], a, b.x, b.y);
              if constexpr (kTerms == 2) MultiplyAdd(c[i][1], a, b.z, b.w);
            }
          }
        }
      }
      if (first + kTogether >= kTilesPerWarp) {
        ReleaseImages(buffer);
        Stamp(kStageBackward);
      }
      const float unscale = s_.scale * (1.0f / (255.0f * kGradientScale * kPixelUnit<kNormal>));
      const float rate = s_.rate;
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float gradient = c[i][0][e];
          if constexpr (kTerms == 2) gradient += c[i][kTerms - 1][e];
          Update(a_, rate, gradient * unscale, &w_[first + i][e], &m_[first + i][e],
                 &v_[first + i][e]);
        }
      }
    }
    Stamp(kStageUpdate);
  }

  __device__ void ReleaseImages(int buffer) {
    __syncwarp();
    if (lane_ < kBlocks) {
      BarrierArriveRemote(MapToBlock(SharedAddress(&s_.images_empty[buffer]), lane_));
    }
  }

  // ---- the ninth warp

  __device__ uint32_t BatchFirst(uint32_t k) const {
    return (a_.first_step + k) * a_.plan.global_batch;
  }
  __device__ uint32_t BatchCount(uint32_t k) const {
    return a_.plan.Batch(a_.first_step + k).count;
  }

  // Starts the copies of batch k, and notes labels, counts and digest of the owned samples.
  __device__ void FetchImages(const Permutation& order, uint32_t k) {
    const int buffer = k & 1;
    const uint32_t count = BatchCount(k);
    const uint32_t full = SharedAddress(&s_.images_full[buffer]);
    const uint32_t row = kOwned * rank_ + lane_;
    const bool mine = lane_ < kOwned && row < count;
    const uint32_t id = mine ? order(BatchFirst(k) + row) : 0;
    if (lane_ < kOwned) s_.labels[buffer][lane_] = mine ? a_.labels[id] : kNoLabel;
    __syncwarp();
    if (lane_ == 0) BarrierExpect(full, count * kRowBytes);
    __syncwarp();
    if constexpr (kMulticast) {
      if (mine) {
        CopyToBlocks(SharedAddress(&s_.images[buffer][row][0]), a_.images + size_t{id} * kRowBytes,
                     kRowBytes, full, (1u << kBlocks) - 1);
      }
    } else {
      for (uint32_t r = lane_; r < count; r += 32) {
        CopyToBlock(SharedAddress(&s_.images[buffer][r][0]),
                    a_.images + size_t{order(BatchFirst(k) + r)} * kRowBytes, kRowBytes, full);
      }
    }
    if (mine) {
      atomicAdd(&a_.records[k].digest, static_cast<unsigned long long>(SampleFingerprint(id)));
      atomicAdd(&a_.records[k].samples, 1ull);
    }
  }

  __device__ void Help() {
    LoadLayer2();
    auto& order = *reinterpret_cast<Permutation*>(s_.order);
    if (lane_ == 0) new (&order) Permutation(a_.plan.Order(a_.epoch));
    __syncwarp();
    double beta1_power = a_.beta1_power;
    double beta2_power = a_.beta2_power;
    uint32_t stop = rank_ == 0 ? *static_cast<const volatile uint32_t*>(a_.stop) : 0;
    uint32_t k = 0;
    if (a_.num_steps > 0) FetchImages(order, 0);
    for (; k < a_.num_steps; ++k) {
      BlockBarrierArrive(kSumsFree);
      if (lane_ == 0) {
        s_.stop = stop != 0 ? 1.0f : 0.0f;
        if (rank_ == 0) {  // used a step later: the word may lie in host memory
          stop = *static_cast<const volatile uint32_t*>(a_.stop);
          if (a_.progress != nullptr) {
            *static_cast<volatile uint32_t*>(a_.progress) = a_.first_step + k;
          }
        }
      }
      if (k + 1 < a_.num_steps) {
        if (k >= 1) Wait(s_.images_empty[(k + 1) & 1], ((k - 1) >> 1) & 1);
        FetchImages(order, k + 1);
      }
      beta1_power *= a_.beta1;
      beta2_power *= a_.beta2;
      float rate = a_.learning_rate;
      if (a_.adam) {
        rate = static_cast<float>(a_.learning_rate * sqrt(1 - beta2_power) / (1 - beta1_power));
      }
      const float scale = 1.0f / static_cast<float>(BatchCount(k));
      BlockBarrier(kSumsReady);
      if (lane_ == 0) {
        s_.rate = rate;
        s_.scale = scale;
      }
      Wait(s_.gradient_full, k & 1);
      if (s_.logit_gradient[0][kStopSlot] != 0) break;
      BlockBarrier(kGradientReady);
      UpdateLayer2(rate, scale);
    }
    if (k + 1 < a_.num_steps) Wait(s_.images_full[(k + 1) & 1], ((k + 1) >> 1) & 1);
    StoreLayer2();
    if (rank_ == 0 && lane_ == 0) a_.report->steps_done = k;
  }

  // A lane keeps four parameters of layer 2: unit lane / 4, classes 4 (lane % 4) and on; the lanes
  // left over keep the biases. Every block updates the biases alike.
  __device__ bool HasBias() const { return lane_ % 4 == 3; }
  __device__ int Piece() const { return HasBias() ? lane_ / 4 : lane_ % 4; }
  __device__ bool HasParameter(int i) const {
    return Piece() < kLogits / 4 && 4 * Piece() + i < a_.classes;
  }
  __device__ size_t Offset(int i) const {
    const size_t hidden = kUnitsPerBlock * kBlocks;
    const size_t row = HasBias() ? hidden : kUnitsPerBlock * rank_ + lane_ / 4;
    return (a_.inputs + 1) * hidden + row * a_.classes + 4 * Piece() + i;
  }
  __device__ float* SharedLayer2() {
    if (Piece() >= kLogits / 4) return nullptr;
    return HasBias() ? &s_.bias2[4 * Piece()] : &s_.weights2[lane_ / 4][4 * Piece()];
  }

  __device__ void LoadLayer2() {
    for (int i = 0; i < 4; ++i) {
      const bool has = HasParameter(i);
      w2_[i] = has ? a_.parameters[Offset(i)] : 0;
      m2_[i] = has ? a_.first_moment[Offset(i)] : 0;
      v2_[i] = has ? a_.second_moment[Offset(i)] : 0;
    }
    ShareLayer2();
  }

  __device__ void ShareLayer2() {
    if (float* const to = SharedLayer2()) {
      *reinterpret_cast<float4*>(to) = make_float4(w2_[0], w2_[1], w2_[2], w2_[3]);
    }
  }

  __device__ void StoreLayer2() {
    for (int i = 0; i < 4; ++i) {
      if (!HasParameter(i) || (HasBias() && rank_ != 0)) continue;
      a_.parameters[Offset(i)] = w2_[i];
      a_.first_moment[Offset(i)] = m2_[i];
      a_.second_moment[Offset(i)] = v2_[i];
    }
  }

  __device__ void UpdateLayer2(float rate, float scale) {
    const float* h = HasBias() ? &s_.one : &s_.sums[0][0][lane_ / 4];
    const int h_stride = HasBias() ? 0 : kUnitsPerBlock;
    const int piece = Piece() < kLogits / 4 ? Piece() : 0;
    float sum[4] = {};
#pragma unroll 16
    for (int sample = 0; sample < kMaxBatch; ++sample) {
      const float4 g = *reinterpret_cast<const float4*>(&s_.logit_gradient[sample][4 * piece]);
      const float x = h[sample * h_stride];
      sum[0] = fmaf(x, g.x, sum[0]);
      sum[1] = fmaf(x, g.y, sum[1]);
      sum[2] = fmaf(x, g.z, sum[2]);
      sum[3] = fmaf(x, g.w, sum[3]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (HasParameter(i)) Update(a_, rate, sum[i] * scale, &w2_[i], &m2_[i], &v2_[i]);
    }
    ShareLayer2();
  }

  const KernelArguments& a_;
  SharedMemory& s_;
  const int warp_;
  const int lane_;
  const int rank_;
  float w_[kTilesPerWarp][4];
  float m_[kTilesPerWarp][4];
  float v_[kTilesPerWarp][4];
  float w2_[4], m2_[4], v2_[4];
  long long stamp_ = 0;
};

template <int kBlocks, int kTerms, bool kNormal, bool kMulticast, bool kProfile>
__global__ void __launch_bounds__(kThreads, 1)
    TrainingKernel(const __grid_constant__ KernelArguments arguments) {
  extern __shared__ __align__(128) uint8_t memory[];
  auto& shared = *reinterpret_cast<Shared<kBlocks>*>(memory);
  Trainer<kBlocks, kTerms, kNormal, kMulticast, kProfile>(arguments, shared).Run();
}

}  // namespace ringmaster::persistent
