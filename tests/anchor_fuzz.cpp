// Anchor grouping on random states that are hard to tell apart, for sanitizers: the CPU's tables on several threads and the CUDA kernels
// (anchor_shim.h), each compared with a map. Usage: anchor_fuzz SEED SECONDS. Ends with 1 and a message at the first difference.
#include <chrono>
#include <map>
#include <random>
#include <string>
#include <thread>

#include "anchor_group.h"
#include "anchor_shim.h"
#if __has_include(<sanitizer/asan_interface.h>)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(place, size) (void)(size)
#endif

namespace {

using namespace anchor;

constexpr i64 kKernelsEvery = 8;  // cases: the kernels take much longer than the tables
using Ids = std::vector<i64>;

// Memory of exactly this size that begins `skip` bytes after a 16-byte boundary, so that a sanitizer sees every byte too many at its end,
// and, before its start, every word of which it can forbid the first half.
struct Memory {
  Memory(size_t size, size_t skip) : all(static_cast<u8*>(std::malloc(skip + size))), bytes(all + skip) {
    std::memset(all, 0xA5, skip + size);
    if (skip >= 8) ASAN_POISON_MEMORY_REGION(all, 8);
  }
  ~Memory() { std::free(all); }
  u8 *all, *bytes;
};

struct Case {
  std::vector<std::string> states;
  Ids labels;
  bool labelled;
  i64 hash_bits, threads, gap;
};

i64 draw(std::mt19937_64& random, i64 below) { return i64(random() % u64(below)); }

Case random_case(std::mt19937_64& random) {
  const i64 bits[] = {1, 4, 4, 12, 64, 128};
  const i64 longest[] = {2, 9, 40, 300, 1100, 3000};
  Case given = {{}, {}, draw(random, 2) == 0, bits[draw(random, 6)], 1 + draw(random, 5), draw(random, 16)};
  const i64 rows = 1 + draw(random, 120), different = 1 + draw(random, rows), most = longest[draw(random, 6)];
  std::vector<std::string> pool;
  for (i64 i = 0; i < different; ++i) {
    if (i > 0 && draw(random, 2) == 0) {  // a neighbour: one bit differs, or a zero more
      std::string state = pool[size_t(draw(random, i))];
      if (state.empty() || draw(random, 4) == 0) {
        state.push_back('\0');
      } else {
        state[size_t(draw(random, i64(state.size())))] ^= char(1 << draw(random, 8));
      }
      pool.push_back(state);
    } else {
      pool.emplace_back(size_t(draw(random, most)), char(draw(random, 256)));
    }
  }
  for (i64 i = 0; i < rows; ++i) {
    given.states.push_back(pool[size_t(draw(random, different))]);
    given.labels.push_back(draw(random, 3) - 1);
  }
  return given;
}

Ids by_map(const Case& given) {
  std::map<std::pair<i64, std::string>, i64> number;
  Ids ids;
  for (size_t i = 0; i < given.states.size(); ++i) {
    const auto key = std::make_pair(given.labelled ? given.labels[i] : 0, given.states[i]);
    ids.push_back(number.emplace(key, i64(number.size())).first->second);
  }
  return ids;
}

Ids by_tables(const Case& given, const u8* data, const Ids& starts, const Ids& lengths) {
  const i64 count = i64(given.states.size());
  const i64* labels = given.labelled ? given.labels.data() : nullptr;
  const Rows rows = {reinterpret_cast<u64>(data), starts.data(), lengths.data(), 0, 0, labels, count};
  Ids ids(given.states.size(), -7);
  Grouper grouper(rows, {1, {2, 3}, given.hash_bits, true}, int(given.threads), ids.data());
  if (given.threads == 1) {
    grouper.take([](i64) { return true; });
  } else {
    grouper.take_all();
  }
  const i64 found = grouper.finish();
  Ids first_row(static_cast<size_t>(found)), counts(static_cast<size_t>(found));
  describe_groups(ids.data(), count, found, first_row.data(), counts.data());
  for (i64 id = 0; id < found; ++id) {
    if (ids[size_t(first_row[size_t(id)])] != id) return {};
  }
  return ids;
}

// What gigpo_fast/anchor/cuda.py does with the kernels; rows that were set aside are numbered by a map.
Ids by_kernels(const Case& given, const u8* data, const Ids& starts, const Ids& lengths, size_t size, unsigned blocks, unsigned threads) {
  const size_t count = given.states.size();
  i64 capacity = 16;
  while (capacity < 2 * i64(count)) capacity *= 2;
#if defined(ANCHOR_WHOLE_WORDS)  // a mistake on purpose, for the sanitizer to find
  size = (size + 15) / 16 * 16;
#endif
  const Ids settings = {i64(count), 1, 2, 3, given.hash_bits, capacity, 1, i64(size)};
  Ids prints(2 * count), slots(count, -7), long_rows(count), table(size_t(capacity), 0), first_row(size_t(capacity), INT64_MAX);
  int counters[kCounters] = {0, 0};
  const auto place = [](auto* p) { return const_cast<void*>(static_cast<const void*>(p)); };
  void* const labels = given.labelled ? place(given.labels.data()) : nullptr;
  void *const told = place(settings.data()), *const bytes = place(data), *const from = place(starts.data());
  void *const length = place(lengths.data()), *const print = prints.data(), *const slot = slots.data();
  void *const long_list = long_rows.data(), *const count_them = counters;
  void* hash[] = {told, bytes, from, length, print, long_list, count_them};
  void* enter[] = {told, bytes, from, length, labels, print, table.data(), first_row.data(), slot, count_them, long_list};
  void* rehash[] = {told, bytes, from, length, slot, print};
  shim::launch(shim::kFingerprint, hash, blocks, threads);
  shim::launch(shim::kFingerprintLong, hash, blocks, threads);
  shim::launch(shim::kEnter, enter, blocks, threads);
  shim::launch(shim::kEnterLong, enter, blocks, threads);
  shim::launch(shim::kRehash, rehash, blocks, threads);
  std::map<std::pair<i64, std::string>, i64> aside;
  Ids ids(count);
  i64 found = 0, set_aside = 0;
  for (size_t i = 0; i < count; ++i) {
    i64 first = slots[i] < 0 ? 0 : first_row[size_t(slots[i])];
    if (slots[i] < 0) {
      ++set_aside;
      first = aside.emplace(std::make_pair(given.labelled ? given.labels[i] : 0, given.states[i]), i64(i)).first->second;
      const Fingerprint f = truncated(siphash(data + starts[i], lengths[i], 2, 3), given.hash_bits);
      if (u64(prints[2 * i]) != f.low || u64(prints[2 * i + 1]) != f.high) return {};
    }
    if (first < 0 || first > i64(i)) return {};
    ids[i] = first == i64(i) ? found++ : ids[size_t(first)];
  }
  return set_aside == counters[kSetAside] ? ids : Ids{};
}

int failed(const char* what, i64 number) {
  std::printf("%s: case %lld differs\n", what, static_cast<long long>(number));
  return 1;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  std::mt19937_64 random(std::strtoull(arguments[1], nullptr, 0));
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(std::atof(arguments[2]));
  i64 cases = 0, rows = 0;
  for (; cases == 0 || std::chrono::steady_clock::now() < end; ++cases) {
    const Case given = random_case(random);
    size_t size = 0;
    Ids starts, lengths;
    for (size_t i = 0; i < given.states.size(); ++i) {
      const std::string& state = given.states[i];
      lengths.push_back(i64(state.size()));
      if (i > 0 && state == given.states[i - 1] && draw(random, 2) == 0) {  // the row before once more, not a copy of it
        starts.push_back(starts.back());
        continue;
      }
      starts.push_back(i64(size += size_t(given.gap)));
      size += state.size();
    }
    const size_t skips[] = {0, 3, 8, 13};
    const Memory memory(size, skips[cases % 4]);
    for (size_t i = 0; i < given.states.size(); ++i) std::memcpy(memory.bytes + starts[i], given.states[i].data(), given.states[i].size());
    const Ids expected = by_map(given);
    if (by_tables(given, memory.bytes, starts, lengths) != expected) return failed("tables", cases);
    if (cases % kKernelsEvery == 0 && by_kernels(given, memory.bytes, starts, lengths, size, 2, 64) != expected) {
      return failed("kernels", cases);
    }
    rows += i64(given.states.size());
  }
  std::printf("%lld cases, %lld rows\n", static_cast<long long>(cases), static_cast<long long>(rows));
  return 0;
}
