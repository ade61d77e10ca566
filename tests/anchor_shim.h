// Runs the kernels of csrc/anchor_cuda.cu on a CPU, for tests. Blocks run at once, so the races on the table are real.
//
// Threads are fibers, a block's in one thread of the system: fast, and a warp operation or barrier that some thread misses, which on a
// device hangs or goes wrong silently, ends the program. With ANCHOR_OS_THREADS they are threads of the system, for race detectors.
#pragma once

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>
#if defined(ANCHOR_OS_THREADS)
#include <barrier>
#else
#include <ucontext.h>
#endif

namespace shim {

constexpr unsigned kWarp = 32;

struct Index {
  unsigned x;
};
struct alignas(16) Words {
  unsigned long long x, y;
};

#if defined(ANCHOR_OS_THREADS)
// Those who meet: everybody leaves a value and goes on when all have. Two buffers are enough: nobody is more than a meeting ahead.
struct Meeting {
  explicit Meeting(unsigned size) : barrier(size), values{std::vector<unsigned long long>(size), std::vector<unsigned long long>(size)} {}

  const unsigned long long* meet(unsigned place, unsigned& turn, unsigned long long value) {
    std::vector<unsigned long long>& mine = values[turn++ % 2];
    mine[place] = value;
    barrier.arrive_and_wait();
    return mine.data();
  }

  std::barrier<> barrier;
  std::vector<unsigned long long> values[2];
};
#else
void wait_a_turn();

struct Meeting {
  explicit Meeting(unsigned size) : values{std::vector<unsigned long long>(size), std::vector<unsigned long long>(size)} {}

  const unsigned long long* meet(unsigned place, unsigned& turn, unsigned long long value) {
    std::vector<unsigned long long>& mine = values[turn++ % 2];
    mine[place] = value;
    const unsigned number = done;
    if (++arrived == mine.size()) {
      arrived = 0;
      ++done;
    }
    while (done == number) wait_a_turn();
    return mine.data();
  }

  unsigned arrived = 0, done = 0;
  std::vector<unsigned long long> values[2];
};
#endif

struct Block {
  Block(unsigned number, unsigned threads) : index(number), all(threads) {
    for (unsigned i = 0; i < threads / kWarp; ++i) warps.push_back(std::make_unique<Meeting>(kWarp));
  }

  unsigned index;
  Meeting all;
  std::vector<std::unique_ptr<Meeting>> warps;
  alignas(16) unsigned char shared[8192] = {};
};

struct Thread {
  Index thread, block, block_size, grid;
  Block* of;
  unsigned warp_turn = 0, block_turn = 0;
};
inline thread_local Thread* now;

inline const unsigned long long* meet_warp(unsigned long long value) {
  const unsigned number = now->thread.x;
  return now->of->warps[number / kWarp]->meet(number % kWarp, now->warp_turn, value);
}

inline unsigned meet_block(bool value) {
  const unsigned long long* all = now->of->all.meet(now->thread.x, now->block_turn, value);
  unsigned count = 0;
  for (unsigned i = 0; i < now->block_size.x; ++i) count += all[i] != 0;
  return count;
}

#if defined(ANCHOR_OS_THREADS)
inline void run_block(unsigned number, unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  Block block(number, threads);
  std::vector<std::thread> all;
  for (unsigned i = 0; i < threads; ++i) {
    all.emplace_back([&block, &kernel, number, blocks, threads, i] {
      Thread mine = {{i}, {number}, {threads}, {blocks}, &block};
      now = &mine;
      kernel();
    });
  }
  for (std::thread& thread : all) thread.join();
}
#else
struct Fibers {
  ucontext_t scheduler;
  std::vector<ucontext_t> contexts;
  std::vector<Thread> threads;
  std::vector<bool> finished;
  const std::function<void()>* kernel;
};
inline thread_local Fibers* fibers;

inline void wait_a_turn() { swapcontext(&fibers->contexts[now->thread.x], &fibers->scheduler); }

inline void fiber_main() {
  (*fibers->kernel)();
  fibers->finished[now->thread.x] = true;
}

inline void run_block(unsigned number, unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  constexpr size_t kStack = 64 * 1024;
  Block block(number, threads);
  Fibers mine = {{}, std::vector<ucontext_t>(threads), {}, std::vector<bool>(threads), &kernel};
  const std::unique_ptr<char[]> stacks(new char[kStack * threads]);
  fibers = &mine;
  for (unsigned i = 0; i < threads; ++i) mine.threads.push_back({{i}, {number}, {threads}, {blocks}, &block});
  for (unsigned i = 0; i < threads; ++i) {
    getcontext(&mine.contexts[i]);
    mine.contexts[i].uc_stack.ss_sp = stacks.get() + kStack * i;
    mine.contexts[i].uc_stack.ss_size = kStack;
    mine.contexts[i].uc_link = &mine.scheduler;
    makecontext(&mine.contexts[i], fiber_main, 0);
  }
  const auto progress = [&] {
    unsigned sum = block.all.done;
    for (const auto& warp : block.warps) sum += warp->done;
    for (const bool finished : mine.finished) sum += finished;
    return sum;
  };
  for (unsigned finished = 0; finished < threads;) {
    const unsigned before = progress();
    finished = 0;
    for (unsigned i = 0; i < threads; ++i) {
      if (!mine.finished[i]) {
        now = &mine.threads[i];
        swapcontext(&mine.scheduler, &mine.contexts[i]);
      }
      finished += mine.finished[i];
    }
    if (progress() == before) {
      std::fprintf(stderr, "anchor_shim: %u of %u threads of a block ended, the others wait for ever\n", finished, threads);
      std::abort();
    }
  }
}
#endif

inline void launch(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  std::vector<std::thread> all;
  for (unsigned i = 0; i < blocks; ++i) all.emplace_back(run_block, i, blocks, threads, std::cref(kernel));
  for (std::thread& thread : all) thread.join();
}

}  // namespace shim

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (shim::now->thread)
#define blockIdx (shim::now->block)
#define blockDim (shim::now->block_size)
#define gridDim (shim::now->grid)
#define ANCHOR_SHARED(type, name)                                             \
  static_assert(sizeof(type) <= sizeof(shim::Block::shared), "shared memory"); \
  type& name = *reinterpret_cast<type*>(shim::now->of->shared)
using ulonglong2 = shim::Words;

template <class T>
static T __shfl_sync(unsigned, T value, unsigned from) {
  return static_cast<T>(shim::meet_warp(static_cast<unsigned long long>(value))[from]);
}
template <class T>
static T __shfl_xor_sync(unsigned, T value, unsigned distance) {
  const unsigned from = (threadIdx.x % shim::kWarp) ^ distance;
  return static_cast<T>(shim::meet_warp(static_cast<unsigned long long>(value))[from]);
}
static inline int __any_sync(unsigned, bool value) {
  const unsigned long long* all = shim::meet_warp(value);
  int any = 0;
  for (unsigned lane = 0; lane < shim::kWarp; ++lane) any |= all[lane] != 0;
  return any;
}
static inline void __syncwarp() { shim::meet_warp(0); }
static inline void __syncthreads() { shim::meet_block(false); }
static inline int __syncthreads_or(bool value) { return shim::meet_block(value) != 0; }

static inline unsigned long long atomicCAS(unsigned long long* p, unsigned long long expected, unsigned long long value) {
  std::atomic_ref<unsigned long long>(*p).compare_exchange_strong(expected, value, std::memory_order_relaxed);
  return expected;
}
static inline void atomicMin(long long* p, long long value) {
#if defined(ANCHOR_PLAIN_MINIMUM)  // a mistake on purpose, for the race detector to find
  if (*p > value) *p = value;
  return;
#endif
  std::atomic_ref<long long> place(*p);
  long long seen = place.load(std::memory_order_relaxed);
  while (seen > value && !place.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}
static inline int atomicAdd(int* p, int value) { return std::atomic_ref<int>(*p).fetch_add(value, std::memory_order_relaxed); }

#define ANCHOR_DEVICE_ONLY
#include "anchor_cuda.cu"

namespace shim {

enum Kernel { kFingerprint, kFingerprintLong, kEnter, kEnterLong, kRehash };

// Calls a kernel; all arguments of all kernels are pointers.
inline void launch(int kernel, void** a, unsigned blocks, unsigned threads) {
  const auto call = [a](auto* function) {
    return [a, function] {
      const auto spread = [&]<class... Args, size_t... I>(void (*f)(Args...), std::index_sequence<I...>) {
        f(static_cast<Args>(a[I])...);
      };
      const auto with_places = [&]<class... Args>(void (*f)(Args...)) { spread(f, std::index_sequence_for<Args...>()); };
      with_places(function);
    };
  };
  switch (kernel) {
    case kFingerprint: return launch(blocks, threads, call(&anchor_fingerprint));
    case kFingerprintLong: return launch(blocks, threads, call(&anchor_fingerprint_long));
    case kEnter: return launch(blocks, threads, call(&anchor_enter));
    case kEnterLong: return launch(blocks, threads, call(&anchor_enter_long));
    case kRehash: return launch(blocks, threads, call(&anchor_rehash));
  }
}

}  // namespace shim
