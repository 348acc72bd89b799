// Runs the threads of a block as contexts of one host thread. See cuda_runtime.h.

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "tests/kernels/cuda_emulation/cuda_runtime.h"

thread_local uint3 threadIdx;
thread_local uint3 blockIdx;
thread_local dim3 blockDim;
thread_local dim3 gridDim;

namespace emulation {
namespace {

constexpr size_t kWarp = 32;
constexpr size_t kStackBytes = 64 << 10;

enum class State { kNew, kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
};

// One fiber runs new threads until one of them waits at a barrier, and is that thread's until it
// ends: a kernel without barriers needs a single fiber and no switches.
class Block {
 public:
  void Run(size_t threads, const std::function<void()>& body) {
    body_ = &body;
    states_.assign(threads, State::kNew);
    fibers_of_.assign(threads, nullptr);
    slots_.resize((threads + kWarp - 1) / kWarp * kWarp);
    next_new_ = 0;
    while (next_new_ < threads) Switch(TakeFiber());
    while (!AllDone()) {
      OpenBarriers();
      for (size_t i = 0; i < threads; ++i) {
        if (states_[i] != State::kReady) continue;
        SetCurrent(i);
        Switch(fibers_of_[i]);
      }
    }
  }

  int lane() const { return static_cast<int>(current_ % kWarp); }
  void* slot(int lane) { return &slots_[current_ / kWarp * kWarp + static_cast<size_t>(lane)]; }

  // The running thread waits until its barrier opens.
  void WaitAt(State barrier) {
    states_[current_] = barrier;
    fibers_of_[current_] = running_;
    swapcontext(&running_->context, &scheduler_);
  }

 private:
  static void Main();

  void RunNewThreads() {
    Fiber* const self = running_;
    while (true) {
      while (next_new_ < states_.size()) {
        SetCurrent(next_new_++);
        (*body_)();
        states_[current_] = State::kDone;
      }
      idle_.push_back(self);
      swapcontext(&self->context, &scheduler_);  // back for the new threads of another block
    }
  }

  void SetCurrent(size_t thread) {
    current_ = thread;
    const auto i = static_cast<unsigned>(thread);
    threadIdx = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
  }

  void Switch(Fiber* fiber) {
    running_ = fiber;
    swapcontext(&scheduler_, &fiber->context);
  }

  Fiber* TakeFiber() {
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>());
      fibers_.back()->stack = std::make_unique<char[]>(kStackBytes);
      Prepare(fibers_.back().get());
      idle_.push_back(fibers_.back().get());
    }
    Fiber* const fiber = idle_.back();
    idle_.pop_back();
    return fiber;
  }

  static void Prepare(Fiber* fiber) {
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber->context, &Block::Main, 0);
  }

  bool AllDone() const {
    return std::all_of(states_.begin(), states_.end(), [](State s) { return s == State::kDone; });
  }

  // Opens the barriers at which every live thread of the block, or of a warp, has arrived.
  void OpenBarriers() {
    bool opened = Open(0, states_.size(), State::kAtBlockBarrier);
    for (size_t warp = 0; warp < states_.size(); warp += kWarp) {
      const size_t end = std::min(states_.size(), warp + kWarp);
      opened = Open(warp, end, State::kAtWarpBarrier) || opened;
    }
    if (opened) return;
    std::fputs("emulated CUDA: the threads of a block wait at different barriers\n", stderr);
    std::abort();
  }

  bool Open(size_t begin, size_t end, State barrier) {
    bool any = false;
    for (size_t i = begin; i < end; ++i) {
      if (states_[i] != barrier && states_[i] != State::kDone) return false;
      any = any || states_[i] == barrier;
    }
    for (size_t i = begin; i < end; ++i) {
      if (states_[i] == barrier) states_[i] = State::kReady;
    }
    return any;
  }

  const std::function<void()>* body_ = nullptr;
  size_t current_ = 0;
  size_t next_new_ = 0;
  Fiber* running_ = nullptr;
  ucontext_t scheduler_;
  std::vector<State> states_;
  std::vector<Fiber*> fibers_of_;  // of threads at a barrier
  std::vector<double> slots_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
};

thread_local Block block;

void Block::Main() { block.RunNewThreads(); }

}  // namespace

void SyncBlock() { block.WaitAt(State::kAtBlockBarrier); }
void SyncWarp() { block.WaitAt(State::kAtWarpBarrier); }
void* LaneSlot(int lane) { return block.slot(lane); }
int Lane() { return block.lane(); }

void RunGrid(dim3 grid, dim3 size, const std::function<void()>& thread) {
  gridDim = grid;
  blockDim = size;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        block.Run(size_t{size.x} * size.y * size.z, thread);
      }
    }
  }
}

}  // namespace emulation
