// Runs the kernels of csrc/anchor_cuda.cu on a CPU, for tests: a block is one warp, a warp is a thread with 32 fibers, and every warp
// operation is a meeting of the 32 lanes. Blocks run at once, so the races on the table are real. A lane that misses a meeting, which
// on a device hangs or goes wrong silently, ends the program here.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <ucontext.h>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static thread_local
#define __launch_bounds__(threads)

struct Index {
  unsigned x;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};

constexpr unsigned kWarp = 32;
static thread_local Index threadIdx, blockIdx, blockDim, gridDim;

struct Warp {
  ucontext_t scheduler, lanes[kWarp];
  bool finished[kWarp];
  unsigned long long values[2][kWarp];
  unsigned meeting[kWarp];
};
static thread_local Warp* warp;

// Every lane leaves its value and goes on when all 32 have. Lanes are at most one meeting apart, so two buffers are enough.
static const unsigned long long* meet(unsigned long long value) {
  const unsigned lane = threadIdx.x, number = warp->meeting[lane]++;
  warp->values[number % 2][lane] = value;
  swapcontext(&warp->lanes[lane], &warp->scheduler);
  return warp->values[number % 2];
}

template <class T>
static T __shfl_sync(unsigned, T value, unsigned from) {
  return static_cast<T>(meet(static_cast<unsigned long long>(value))[from]);
}
template <class T>
static T __shfl_xor_sync(unsigned, T value, unsigned distance) {
  const unsigned from = threadIdx.x ^ distance;
  return static_cast<T>(meet(static_cast<unsigned long long>(value))[from]);
}
static int __any_sync(unsigned, bool value) {
  const unsigned long long* all = meet(value);
  int any = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) any |= all[lane] != 0;
  return any;
}
static void __syncthreads() { meet(0); }

static unsigned long long atomicCAS(unsigned long long* p, unsigned long long expected, unsigned long long value) {
  __atomic_compare_exchange_n(p, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
static void atomicMin(long long* p, long long value) {
  long long seen = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (seen > value && !__atomic_compare_exchange_n(p, &seen, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}
static void atomicExch(int* p, int value) { __atomic_store_n(p, value, __ATOMIC_RELAXED); }

#define ANCHOR_DEVICE_ONLY
#include "anchor_cuda.cu"

struct Arguments {
  const anchor::i64* settings;
  const anchor::u8* data;
  const anchor::i64 *starts, *lengths, *group;
  anchor::u64* fingerprints;
  unsigned long long* table;
  long long* first_row;
  anchor::i64* slot_of_row;
  int* gave_up;
};
static thread_local const Arguments* arguments;
static thread_local bool entering;

static void lane_main() {
  const Arguments& a = *arguments;
  if (entering) {
    anchor_enter(a.settings, a.data, a.starts, a.lengths, a.group, a.fingerprints, a.table, a.first_row, a.slot_of_row, a.gave_up);
  } else {
    anchor_fingerprint(a.settings, a.data, a.starts, a.lengths, a.fingerprints);
  }
  warp->finished[threadIdx.x] = true;
}

static void run_block(unsigned block, unsigned blocks, const Arguments& given, bool enter) {
  constexpr size_t kStack = 64 * 1024;
  Warp mine = {};
  std::vector<char> stacks(kStack * kWarp);
  warp = &mine;
  arguments = &given;
  entering = enter;
  blockIdx = {block};
  gridDim = {blocks};
  blockDim = {kWarp};
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    getcontext(&mine.lanes[lane]);
    mine.lanes[lane].uc_stack.ss_sp = stacks.data() + kStack * lane;
    mine.lanes[lane].uc_stack.ss_size = kStack;
    mine.lanes[lane].uc_link = &mine.scheduler;
    makecontext(&mine.lanes[lane], lane_main, 0);
  }
  for (unsigned done = 0; done == 0;) {
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      threadIdx = {lane};
      swapcontext(&mine.scheduler, &mine.lanes[lane]);
      done += mine.finished[lane];
    }
    if (done != 0 && done != kWarp) {
      std::fprintf(stderr, "anchor_cuda_on_cpu: %u of 32 lanes ended while the others wait\n", done);
      std::abort();
    }
  }
}

extern "C" void run_kernels(
    const anchor::i64* settings, const anchor::u8* data, const anchor::i64* starts, const anchor::i64* lengths, const anchor::i64* group,
    anchor::u64* fingerprints, unsigned long long* table, long long* first_row, anchor::i64* slot_of_row, int* gave_up, int blocks) {
  const Arguments given = {settings, data, starts, lengths, group, fingerprints, table, first_row, slot_of_row, gave_up};
  for (bool enter : {false, true}) {
    std::vector<std::thread> threads;
    for (int block = 0; block < blocks; ++block) {
      threads.emplace_back(run_block, unsigned(block), unsigned(blocks), std::cref(given), enter);
    }
    for (std::thread& thread : threads) thread.join();
  }
}

extern "C" void host_fingerprint(const anchor::u8* data, anchor::i64 length, anchor::u64 seed, anchor::u64* out) {
  anchor::u64 key[anchor::kKeyWords];
  anchor::expand_key(seed, key);
  const anchor::Fingerprint f = anchor::fingerprint(data, length, seed, key);
  out[0] = f.low;
  out[1] = f.high;
}
