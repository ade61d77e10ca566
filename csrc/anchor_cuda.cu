// Anchor grouping on a GPU: one warp a state, the same fingerprint, table and rules as on the CPU (anchor_hash.h).
//
// Two kernels. The first fingerprints every state. The second enters every state into an open-addressing table of row numbers with
// atomicCAS; which row of a group gets into the slot is a race, so each slot also keeps the smallest row with atomicMin, and only that
// one is used afterwards. The caller turns it into dense ids with a scan, without waiting for the device in between.
// Device code works on plain pointers and includes no standard header, so that NVRTC can compile it on machines without nvcc.
#include "anchor_hash.h"

namespace anchor {

// What both kernels are told, as one array of int64 on the device.
enum Setting { kRows, kSeed, kHashBits, kCapacity, kBytesDecide, kSettings };

constexpr unsigned kLanes = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr unsigned kThreads = 256;

struct Words {
  u64 first, second;
};

static __device__ __forceinline__ Words load16(const u8* p, bool aligned) {
  if (!aligned) return {read64(p), read64(p + 8)};
  const ulonglong2 both = *reinterpret_cast<const ulonglong2*>(p);
  return {both.x, both.y};
}

static __device__ __forceinline__ bool is_aligned(const u8* p) { return (reinterpret_cast<u64>(p) & 15) == 0; }

// A plain look before an atomic operation: most rows repeat a state, and their slot needs no change.
template <class T>
static __device__ __forceinline__ T peek(T* p) {
#if defined(__CUDACC__)
  return *static_cast<volatile T*>(p);
#else
  return __atomic_load_n(p, __ATOMIC_RELAXED);
#endif
}

static __device__ __forceinline__ u64 shuffled_sum(u64 value) {
  // Lanes with the same number modulo 4 hold parts of the same accumulators.
  for (unsigned distance = 4; distance < kLanes; distance *= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

// The whole warp hashes one state; every lane returns the fingerprint. Of the eight stripes that a warp reads at once, lane l has
// 16 bytes: piece l % 4 of stripe l / 4. Up to 240 bytes there is nothing to share out, and every lane does the same.
static __device__ Fingerprint warp_fingerprint(const u8* p, i64 length, u64 seed, const u64* key, unsigned lane) {
  if (length <= kLongerThan) return short_fingerprint(p, length, seed, key);
  const unsigned piece = lane % 4;
  const bool aligned = is_aligned(p);
  const i64 stripes = (length - 1) / kStripe;
  u64 acc[8];
  start_accumulators(acc);
  u64 even = acc[2 * piece], odd = acc[2 * piece + 1];
  for (i64 block = 0; block < stripes; block += kStripesPerBlock) {
    const i64 in_block = stripes - block < kStripesPerBlock ? stripes - block : kStripesPerBlock;
    u64 even_part = 0, odd_part = 0;
    for (i64 n = lane / 4; n < in_block; n += kLanes / 4) {
      const Words words = load16(p + (block + n) * kStripe + 16 * piece, aligned);
      accumulate16(even_part, odd_part, words.first, words.second, key[n + 2 * piece], key[n + 2 * piece + 1]);
    }
    even += shuffled_sum(even_part);
    odd += shuffled_sum(odd_part);
    if (in_block == kStripesPerBlock) {
      even = scrambled(even, key[16 + 2 * piece]);
      odd = scrambled(odd, key[16 + 2 * piece + 1]);
    }
  }
  for (unsigned i = 0; i < 4; ++i) {
    acc[2 * i] = __shfl_sync(kAllLanes, even, i);
    acc[2 * i + 1] = __shfl_sync(kAllLanes, odd, i);
  }
  const u8* secret = seeded_secret(key);
  accumulate(acc, p + length - kStripe, secret + 121);
  return finish_accumulators(acc, length, secret);
}

// The whole warp compares two states of one length; every lane returns the answer.
static __device__ bool warp_equal(const u8* a, const u8* b, i64 length, unsigned lane) {
  const bool aligned = is_aligned(a) && is_aligned(b);
  for (i64 base = 0; base < length; base += 16 * kLanes) {
    const i64 mine = base + 16 * i64(lane);
    bool differs = false;
    if (mine + 16 <= length) {
      const Words x = load16(a + mine, aligned), y = load16(b + mine, aligned);
      differs = x.first != y.first || x.second != y.second;
    } else {
      for (i64 i = mine; i < length; ++i) differs |= a[i] != b[i];
    }
    if (__any_sync(kAllLanes, differs)) return false;
  }
  return true;
}

}  // namespace anchor

// settings (5,) int64; starts, lengths (rows,) int64; fingerprints (rows, 2) uint64, written.
extern "C" __global__ void __launch_bounds__(anchor::kThreads) anchor_fingerprint(
    const anchor::i64* settings, const anchor::u8* data, const anchor::i64* starts, const anchor::i64* lengths, anchor::u64* fingerprints) {
  using namespace anchor;
  __shared__ u64 key[kKeyWords];
  const u64 seed = u64(settings[kSeed]);
  if (threadIdx.x == 0) expand_key(seed, key);
  __syncthreads();
  const unsigned lane = threadIdx.x % kLanes;
  const i64 warps = i64(gridDim.x) * (blockDim.x / kLanes);
  for (i64 row = i64(blockIdx.x) * (blockDim.x / kLanes) + threadIdx.x / kLanes; row < settings[kRows]; row += warps) {
    const Fingerprint f = truncated(warp_fingerprint(data + starts[row], lengths[row], seed, key, lane), settings[kHashBits]);
    if (lane == 0) {
      fingerprints[2 * row] = f.low;
      fingerprints[2 * row + 1] = f.high;
    }
  }
}

// group, slot_of_row (rows,) int64; table (capacity,) uint64 of row + 1, zero at the start, so that no key is reserved; first_row
// (capacity,) int64, the greatest int64 at the start; gave_up (1,) int32, zero at the start, set if a row found no slot within kProbes.
extern "C" __global__ void __launch_bounds__(anchor::kThreads) anchor_enter(
    const anchor::i64* settings, const anchor::u8* data, const anchor::i64* starts, const anchor::i64* lengths, const anchor::i64* group,
    const anchor::u64* fingerprints, unsigned long long* table, long long* first_row, anchor::i64* slot_of_row, int* gave_up) {
  using namespace anchor;
  const unsigned lane = threadIdx.x % kLanes;
  const i64 warps = i64(gridDim.x) * (blockDim.x / kLanes);
  for (i64 row = i64(blockIdx.x) * (blockDim.x / kLanes) + threadIdx.x / kLanes; row < settings[kRows]; row += warps) {
    const Fingerprint f = {fingerprints[2 * row], fingerprints[2 * row + 1]};
    const i64 length = lengths[row], label = group[row];
    i64 found = -1;
    for (i64 probe = 0; probe < kProbes && found < 0; ++probe) {
      const i64 slot = table_slot(f, label, probe, settings[kCapacity]);
      unsigned long long holder = 0;
      if (lane == 0) {
        holder = peek(table + slot);
        if (holder == 0) holder = atomicCAS(table + slot, 0ull, static_cast<unsigned long long>(row) + 1);
      }
      holder = __shfl_sync(kAllLanes, holder, 0);
      const i64 other = holder == 0 ? row : static_cast<i64>(holder - 1);
      const bool alike = other == row || (fingerprints[2 * other] == f.low && fingerprints[2 * other + 1] == f.high &&
                                          lengths[other] == length && group[other] == label &&
                                          (!settings[kBytesDecide] || warp_equal(data + starts[other], data + starts[row], length, lane)));
      if (alike) found = slot;
    }
    if (lane == 0) {
      slot_of_row[row] = found;
      if (found < 0) {
        atomicExch(gave_up, 1);
      } else if (peek(first_row + found) > row) {  // it only ever falls
        atomicMin(first_row + found, static_cast<long long>(row));
      }
    }
  }
}

// ---- host part, for a library built ahead of time ------------------------------------------------------------------------------
#if !defined(__CUDACC_RTC__) && !defined(ANCHOR_DEVICE_ONLY)

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

namespace {

using torch::stable::Tensor;

template <class T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

void enter_packed(
    Tensor settings, Tensor data, Tensor starts, Tensor lengths, Tensor group, Tensor fingerprints, Tensor table, Tensor first_row,
    Tensor slot_of_row, Tensor gave_up, int64_t blocks) {
  using anchor::i64, anchor::u64, anchor::u8;
  const torch::stable::accelerator::DeviceGuard guard(data.get_device_index());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(data.get_device_index(), &stream));
  const auto on = static_cast<cudaStream_t>(stream);
  anchor_fingerprint<<<unsigned(blocks), anchor::kThreads, 0, on>>>(
      pointer<i64>(settings), pointer<u8>(data), pointer<i64>(starts), pointer<i64>(lengths), pointer<u64>(fingerprints));
  anchor_enter<<<unsigned(blocks), anchor::kThreads, 0, on>>>(
      pointer<i64>(settings), pointer<u8>(data), pointer<i64>(starts), pointer<i64>(lengths), pointer<i64>(group),
      pointer<u64>(fingerprints), pointer<unsigned long long>(table), pointer<long long>(first_row), pointer<i64>(slot_of_row),
      pointer<int>(gave_up));
  STD_TORCH_CHECK(cudaGetLastError() == cudaSuccess, "enter_packed: a kernel did not start");
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gigpo_fast_C, m) {
  m.def(
      "enter_packed(Tensor settings, Tensor data, Tensor starts, Tensor lengths, Tensor group, Tensor(a!) fingerprints, Tensor(b!) table,"
      " Tensor(c!) first_row, Tensor(d!) slot_of_row, Tensor(e!) gave_up, int blocks) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gigpo_fast_C, CUDA, m) {
  m.impl("enter_packed", TORCH_BOX(&enter_packed));
}

#endif
