// The kernels of csrc/anchor_cuda.cu, run on a CPU, and the host's own hashes and tables, as C functions for the tests in Python.
namespace {
long comparisons = 0, lines = 0;
}
#define ANCHOR_COUNT(what) ++what
#include "anchor_group.h"
#include "anchor_shim.h"

extern "C" void launch_kernel(int kernel, void** arguments, int blocks, int threads) {
  shim::launch(kernel, arguments, unsigned(blocks), unsigned(threads));
}

extern "C" void host_fingerprint(const anchor::u8* data, anchor::i64 length, anchor::u64 seed, anchor::u64* out) {
  anchor::u64 key[anchor::kKeyWords];
  anchor::expand_key(seed, key);
  const anchor::Fingerprint f = anchor::fingerprint(data, length, seed, key);
  out[0] = f.low;
  out[1] = f.high;
}

// The same with the longer states' part of one instruction set (anchor_isa.h); 0 if this machine cannot run it.
extern "C" int host_fingerprint_at(int level, const anchor::u8* data, anchor::i64 length, anchor::u64 seed, anchor::u64* out) {
  const anchor::LongFingerprint longer = anchor::long_fingerprint_at(level);
  if (longer == nullptr) return 0;
  anchor::u64 key[anchor::kKeyWords];
  anchor::expand_key(seed, key);
  const anchor::Fingerprint f = anchor::fingerprint(data, length, seed, key, longer);
  out[0] = f.low;
  out[1] = f.high;
  return 1;
}

// The hash that finds states of up to 240 bytes in a host's tables.
extern "C" anchor::u64 host_short_hash(const anchor::u8* data, anchor::i64 length, anchor::u64 seed) {
  return anchor::ShortHash(seed)(data, length);
}

extern "C" void host_siphash(const anchor::u8* data, anchor::i64 length, anchor::u64 key_low, anchor::u64 key_high, anchor::u64* out) {
  const anchor::Fingerprint f = anchor::siphash(data, length, key_low, key_high);
  out[0] = f.low;
  out[1] = f.high;
}

// The work that rows of one width cost: how often two states were compared, and how many lines of the tables were looked at.
extern "C" void count_work(const anchor::u8* data, anchor::i64 rows, anchor::i64 width, anchor::u64 seed, long* out) {
  comparisons = lines = 0;
  std::vector<anchor::i64> ids(static_cast<size_t>(rows));
  const anchor::Rows given = {reinterpret_cast<anchor::u64>(data), nullptr, nullptr, width, 0, nullptr, rows};
  anchor::Grouper grouper(given, {seed, {2, 3}, 128, true}, 1, ids.data());
  grouper.take_all();
  grouper.finish();
  out[0] = comparisons;
  out[1] = lines;
}
