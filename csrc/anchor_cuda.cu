// Anchor grouping on a GPU: one warp a state, a whole block for a long one; the same hashes, table and rules as on the CPU.
//
// First every state is fingerprinted. Then every state is entered into an open-addressing table of row numbers with atomicCAS; which row
// of a group gets into the slot is a race, so each slot also keeps the smallest row with atomicMin, and only that one is used afterwards.
// The caller turns it into dense ids with a scan. Where a table gives up on rows, because somebody made states collide, they get a
// SipHash-128 instead and are sorted by that. The device is not waited for before the number of groups is needed.
// Machines without nvcc compile the device code with NVRTC, as one text (gigpo_fast/anchor/cuda.py).
#include "anchor_device.h"
#include "anchor_siphash.h"

#ifndef ANCHOR_SHARED
#define ANCHOR_SHARED(type, name) __shared__ type name
#endif

namespace anchor {

// What all kernels are told, as one array of int64 on the device.
enum Setting { kRows, kSeed, kSipLow, kSipHigh, kHashBits, kCapacity, kBytesDecide, kBytes, kSettings };
// What they count there, as int32.
enum Counter { kLongRows, kSetAside, kCounters };

// The arrays of a call. settings (kSettings,) int64; counters (kCounters,) int32, zero at the start; starts, lengths, group (rows,) int64,
// group null for one group; fingerprints (rows, 2) uint64; long_rows, slot_of_row (rows,) int64; table (capacity,) uint64 of row + 1, zero
// at the start, so that no key is reserved; first_row (capacity,) int64, the greatest int64 at the start. data is kBytes long.
struct Call {
  const i64* settings;
  const u8* data;
  const i64 *starts, *lengths, *group;
  const u64* fingerprints;
  unsigned long long* table;
  long long* first_row;
  i64* slot_of_row;
  int* counters;
};

static __device__ __forceinline__ Reader reader_of(const i64* settings, const u8* data, i64 start, i64 length) {
  return reader_of(data, data + settings[kBytes], data + start, length);
}

template <class Team>
static __device__ __forceinline__ bool equal(const Call& call, const Team& team, i64 a, i64 b, i64 length) {
  const i64 at = call.starts[a], other = call.starts[b];
  const bool inside = reader_of(call.settings, call.data, at, length).words_inside &&
                      reader_of(call.settings, call.data, other, length).words_inside;
  return team.equal({inside}, call.data + at, call.data + other, length);
}

// Sets slot_of_row, to -1 if the row is set aside. That happens after kProbes full slots, or kCrowd different states of its fingerprint.
// Slots never change once they are taken, so all rows of a state see the same ones before theirs, and all are set aside or none.
template <class Team>
static __device__ __forceinline__ void enter_row(const Call& call, const Team& team, i64 row) {
  const Fingerprint f = {call.fingerprints[2 * row], call.fingerprints[2 * row + 1]};
  const i64 length = call.lengths[row], label = call.group == nullptr ? 0 : call.group[row];
  i64 found = -1;
  int others = 0;
  for (i64 probe = 0; probe < kProbes && found < 0 && others < kCrowd; ++probe) {
    const i64 slot = table_slot(f, label, probe, call.settings[kCapacity]);
    unsigned long long holder = 0;
    if (team.leads()) {
      holder = peek(call.table + slot);
      if (holder == 0) holder = atomicCAS(call.table + slot, 0ull, static_cast<unsigned long long>(row) + 1);
    }
    holder = team.told(holder);
    const i64 other = holder == 0 ? row : static_cast<i64>(holder - 1);
    const bool like = other == row || (call.fingerprints[2 * other] == f.low && call.fingerprints[2 * other + 1] == f.high &&
                                       call.lengths[other] == length && (call.group == nullptr || call.group[other] == label));
    if (like && (other == row || !call.settings[kBytesDecide] || equal(call, team, other, row, length))) {
      found = slot;
    } else {
      others += like;
    }
  }
  if (team.leads()) {
    call.slot_of_row[row] = found;
    if (found < 0) {
      atomicAdd(call.counters + kSetAside, 1);
    } else if (peek(call.first_row + found) > row) {  // it only ever falls
      atomicMin(call.first_row + found, static_cast<long long>(row));
    }
  }
}

static __device__ __forceinline__ void make_key(Shared& shared, u64 seed) {
  if (threadIdx.x == 0) expand_key(seed, shared.key);
  __syncthreads();
}

static __device__ __forceinline__ void store(u64* fingerprints, i64 row, Fingerprint f, i64 hash_bits) {
  f = truncated(f, hash_bits);
  fingerprints[2 * row] = f.low;
  fingerprints[2 * row + 1] = f.high;
}

}  // namespace anchor

// A warp a state; long ones are listed in long_rows for the kernel after.
extern "C" __global__ void __launch_bounds__(anchor::kThreads, anchor::kBlocks) anchor_fingerprint(
    const anchor::i64* settings, const anchor::u8* data, const anchor::i64* starts, const anchor::i64* lengths, anchor::u64* fingerprints,
    anchor::i64* long_rows, int* counters) {
  using namespace anchor;
  ANCHOR_SHARED(Shared, shared);
  const u64 seed = u64(settings[kSeed]);
  make_key(shared, seed);
  const unsigned lane = threadIdx.x % kLanes;
  const i64 warps = i64(gridDim.x) * (blockDim.x / kLanes);
  for (i64 row = i64(blockIdx.x) * (blockDim.x / kLanes) + threadIdx.x / kLanes; row < settings[kRows]; row += warps) {
    if (lengths[row] > kLongState) {
      if (lane == 0) long_rows[atomicAdd(counters + kLongRows, 1)] = row;
      continue;
    }
    const Reader read = reader_of(settings, data, starts[row], lengths[row]);
    const Fingerprint f = warp_fingerprint(read, data + starts[row], lengths[row], seed, shared.key, shared.staged[threadIdx.x / kLanes], lane);
    if (lane == 0) store(fingerprints, row, f, settings[kHashBits]);
  }
}

// A block a long state.
extern "C" __global__ void __launch_bounds__(anchor::kThreads, anchor::kBlocks) anchor_fingerprint_long(
    const anchor::i64* settings, const anchor::u8* data, const anchor::i64* starts, const anchor::i64* lengths, anchor::u64* fingerprints,
    const anchor::i64* long_rows, const int* counters) {
  using namespace anchor;
  ANCHOR_SHARED(Shared, shared);
  if (i64(blockIdx.x) >= counters[kLongRows]) return;
  make_key(shared, u64(settings[kSeed]));
  for (i64 number = blockIdx.x; number < counters[kLongRows]; number += gridDim.x) {
    const i64 row = long_rows[number];
    const Reader read = reader_of(settings, data, starts[row], lengths[row]);
    const Fingerprint f = block_fingerprint(read, data + starts[row], lengths[row], shared);
    if (threadIdx.x == 0) store(fingerprints, row, f, settings[kHashBits]);
  }
}

// A warp a state; long ones are left to the kernel after.
extern "C" __global__ void __launch_bounds__(anchor::kThreads, anchor::kBlocks) anchor_enter(
    const anchor::i64* settings, const anchor::u8* data, const anchor::i64* starts, const anchor::i64* lengths, const anchor::i64* group,
    const anchor::u64* fingerprints, unsigned long long* table, long long* first_row, anchor::i64* slot_of_row, int* counters) {
  using namespace anchor;
  const Call call = {settings, data, starts, lengths, group, fingerprints, table, first_row, slot_of_row, counters};
  const WarpTeam team = {threadIdx.x % kLanes};
  const i64 warps = i64(gridDim.x) * (blockDim.x / kLanes);
  for (i64 row = i64(blockIdx.x) * (blockDim.x / kLanes) + threadIdx.x / kLanes; row < settings[kRows]; row += warps) {
    if (lengths[row] <= kLongState) enter_row(call, team, row);
  }
}

// A block a long state, into the same table: states of different lengths are never equal.
extern "C" __global__ void __launch_bounds__(anchor::kThreads, anchor::kBlocks) anchor_enter_long(
    const anchor::i64* settings, const anchor::u8* data, const anchor::i64* starts, const anchor::i64* lengths, const anchor::i64* group,
    const anchor::u64* fingerprints, unsigned long long* table, long long* first_row, anchor::i64* slot_of_row, int* counters,
    const anchor::i64* long_rows) {
  using namespace anchor;
  ANCHOR_SHARED(Shared, shared);
  const Call call = {settings, data, starts, lengths, group, fingerprints, table, first_row, slot_of_row, counters};
  const BlockTeam team = {shared};
  for (i64 number = blockIdx.x; number < counters[kLongRows]; number += gridDim.x) enter_row(call, team, long_rows[number]);
}

// A thread a row: replaces the fingerprints of rows that were set aside.
extern "C" __global__ void __launch_bounds__(anchor::kThreads, anchor::kBlocks) anchor_rehash(
    const anchor::i64* settings, const anchor::u8* data, const anchor::i64* starts, const anchor::i64* lengths,
    const anchor::i64* slot_of_row, anchor::u64* fingerprints) {
  using namespace anchor;
  for (i64 row = i64(blockIdx.x) * blockDim.x + threadIdx.x; row < settings[kRows]; row += i64(gridDim.x) * blockDim.x) {
    if (slot_of_row[row] >= 0) continue;
    const Reader read = reader_of(settings, data, starts[row], lengths[row]);
    const Fingerprint f = siphash(data + starts[row], lengths[row], u64(settings[kSipLow]), u64(settings[kSipHigh]), read);
    store(fingerprints, row, f, settings[kHashBits]);
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

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_started() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "gigpo_fast anchor: a kernel did not start: ", cudaGetErrorString(error));
}

void enter_packed(
    Tensor settings, Tensor data, Tensor starts, Tensor lengths, Tensor group, Tensor fingerprints, Tensor table, Tensor first_row,
    Tensor slot_of_row, Tensor long_rows, Tensor counters, int64_t blocks) {
  using anchor::i64, anchor::u64, anchor::u8;
  const torch::stable::accelerator::DeviceGuard guard(data.get_device_index());
  const cudaStream_t on = current_stream(data);
  const auto *told = pointer<i64>(settings), *from = pointer<i64>(starts), *length = pointer<i64>(lengths);
  const i64* label = group.numel() == 0 ? nullptr : pointer<i64>(group);
  const u8* bytes = pointer<u8>(data);
  auto *print = pointer<u64>(fingerprints);
  auto *slots = pointer<unsigned long long>(table);
  auto *firsts = pointer<long long>(first_row);
  auto *slot = pointer<i64>(slot_of_row), *queue = pointer<i64>(long_rows);
  int* counts = pointer<int>(counters);
  const unsigned grid = unsigned(blocks);
  anchor_fingerprint<<<grid, anchor::kThreads, 0, on>>>(told, bytes, from, length, print, queue, counts);
  check_started();
  anchor_fingerprint_long<<<grid, anchor::kThreads, 0, on>>>(told, bytes, from, length, print, queue, counts);
  check_started();
  anchor_enter<<<grid, anchor::kThreads, 0, on>>>(told, bytes, from, length, label, print, slots, firsts, slot, counts);
  check_started();
  anchor_enter_long<<<grid, anchor::kThreads, 0, on>>>(told, bytes, from, length, label, print, slots, firsts, slot, counts, queue);
  check_started();
}

void rehash_packed(
    Tensor settings, Tensor data, Tensor starts, Tensor lengths, Tensor slot_of_row, Tensor fingerprints, int64_t blocks) {
  using anchor::i64, anchor::u64, anchor::u8;
  const torch::stable::accelerator::DeviceGuard guard(data.get_device_index());
  anchor_rehash<<<unsigned(blocks), anchor::kThreads, 0, current_stream(data)>>>(
      pointer<i64>(settings), pointer<u8>(data), pointer<i64>(starts), pointer<i64>(lengths), pointer<i64>(slot_of_row),
      pointer<u64>(fingerprints));
  check_started();
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gigpo_fast_C, m) {
  m.def(
      "enter_packed(Tensor settings, Tensor data, Tensor starts, Tensor lengths, Tensor group, Tensor(a!) fingerprints, Tensor(b!) table,"
      " Tensor(c!) first_row, Tensor(d!) slot_of_row, Tensor(e!) long_rows, Tensor(f!) counters, int blocks) -> ()");
  m.def(
      "rehash_packed(Tensor settings, Tensor data, Tensor starts, Tensor lengths, Tensor slot_of_row, Tensor(a!) fingerprints, int blocks)"
      " -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gigpo_fast_C, CUDA, m) {
  m.impl("enter_packed", TORCH_BOX(&enter_packed));
  m.impl("rehash_packed", TORCH_BOX(&rehash_packed));
}

#endif
