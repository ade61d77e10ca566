// The kernels of csrc/anchor_cuda.cu, run on a CPU, and the host's own hashes, as C functions for the tests in Python.
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

extern "C" void host_siphash(const anchor::u8* data, anchor::i64 length, anchor::u64 key_low, anchor::u64 key_high, anchor::u64* out) {
  const anchor::Fingerprint f = anchor::siphash(data, length, key_low, key_high);
  out[0] = f.low;
  out[1] = f.high;
}
