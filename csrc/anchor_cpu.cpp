// Anchor grouping on a CPU: equal states of one episode group get one id, numbered by first occurrence.
//
// States are hashed in parallel, a block at a time, and then entered into one table in row order while they are still in the cache.
// Row order is what makes the ids the same for any number of threads and any seed; bytes decide, so the hash can cost time only.
// Two doors: an op for packed buffers, and a C function that reads the str and bytes objects of a Python list where they lie
// (no Python object passes the dispatcher, and making a packed copy first costs more than all the hashing).
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <tuple>
#include <vector>

#include "anchor_hash.h"

namespace {

using anchor::Fingerprint;
using anchor::i64;
using anchor::u64;
using anchor::u8;
using torch::stable::Tensor;

// A block is hashed, then entered while it is still in the cache. Threads take part only where there is much to hash, and then in
// larger blocks: meeting costs a thread more than a megabyte of hashing does, far more on a machine that is busy with other work.
constexpr i64 kBlockBytes = i64(1) << 20, kBlockRows = 8192;
constexpr i64 kShared = 16;  // times as large are the blocks that threads share
constexpr i64 kSharedFromBlocks = 64;
constexpr i64 kAhead = 8;  // rows between asking for memory and using it

struct Row {
  const u8* bytes;
  i64 length;
  i64 group;
};

struct Options {
  u64 seed;
  i64 hash_bits;
  bool bytes_decide;
};

// One distinct state: its fingerprint, its first row, and how many rows have it.
struct State {
  Fingerprint print;
  Row row;
  i64 first_row;
  i64 count;
};

bool same(const State& state, const Fingerprint& print, const Row& row, bool bytes_decide) {
  return state.print.low == print.low && state.print.high == print.high && state.row.length == row.length && state.row.group == row.group &&
         (!bytes_decide || row.length == 0 || std::memcmp(state.row.bytes, row.bytes, size_t(row.length)) == 0);
}

// Open addressing; a slot holds the number of a distinct state plus one, so no key is reserved. It grows with the distinct states, not
// with the rows, and so stays in the cache for as long as states repeat.
class Table {
 public:
  explicit Table(bool bytes_decide) : slots_(anchor::table_capacity(512), 0), bytes_decide_(bytes_decide) {}

  // The id of the row's state, or -1 if the probe sequence gave up.
  i64 enter(std::vector<State>& states, const Fingerprint& print, const Row& row, i64 number) {
    for (i64 probe = 0; probe < anchor::kProbes; ++probe) {
      i64& slot = slots_[size_t(anchor::table_slot(print, row.group, probe, capacity()))];
      if (slot == 0) {
        states.push_back({print, row, number, 1});
        const i64 distinct = slot = i64(states.size());
        return 2 * distinct <= capacity() || grow(states) ? distinct - 1 : -1;
      }
      State& state = states[size_t(slot - 1)];
      if (same(state, print, row, bytes_decide_)) {
        ++state.count;
        return slot - 1;
      }
    }
    return -1;
  }

  void prefetch(const Fingerprint& print, const Row& row) const {
    __builtin_prefetch(&slots_[size_t(anchor::table_slot(print, row.group, 0, capacity()))]);
  }

 private:
  i64 capacity() const { return i64(slots_.size()); }

  bool grow(const std::vector<State>& states) {
    slots_.assign(slots_.size() * 4, 0);
    for (size_t id = 0; id < states.size(); ++id) {
      i64 probe = 0;
      for (; probe < anchor::kProbes; ++probe) {
        i64& slot = slots_[size_t(anchor::table_slot(states[id].print, states[id].row.group, probe, capacity()))];
        if (slot == 0) {
          slot = i64(id) + 1;
          break;
        }
      }
      if (probe == anchor::kProbes) return false;
    }
    return true;
  }

  std::vector<i64> slots_;
  bool bytes_decide_;
};

// Where the table gave up (somebody made states collide): sort, which no input can slow down by more than a logarithm.
std::vector<State> group_by_sorting(const std::vector<Row>& rows, const std::vector<Fingerprint>& prints, bool bytes_decide, i64* ids) {
  auto compare = [&](i64 a, i64 b) -> i64 {
    const Row &x = rows[size_t(a)], &y = rows[size_t(b)];
    if (x.group != y.group) return x.group < y.group ? -1 : 1;
    if (x.length != y.length) return x.length < y.length ? -1 : 1;
    if (bytes_decide) return x.length == 0 ? 0 : std::memcmp(x.bytes, y.bytes, size_t(x.length));
    const Fingerprint &p = prints[size_t(a)], &q = prints[size_t(b)];
    if (p.low != q.low) return p.low < q.low ? -1 : 1;
    return p.high == q.high ? 0 : p.high < q.high ? -1 : 1;
  };
  std::vector<i64> order(rows.size());
  std::iota(order.begin(), order.end(), i64(0));
  std::sort(order.begin(), order.end(), [&](i64 a, i64 b) {
    const i64 difference = compare(a, b);
    return difference != 0 ? difference < 0 : a < b;
  });
  std::vector<i64> first(rows.size());
  for (size_t i = 0; i < order.size(); ++i) {
    const bool repeats = i > 0 && compare(order[i - 1], order[i]) == 0;
    first[size_t(order[i])] = repeats ? first[size_t(order[i - 1])] : order[i];
  }
  std::vector<State> states;
  for (i64 row = 0; row < i64(rows.size()); ++row) {
    const i64 earliest = first[size_t(row)];
    if (earliest == row) {
      ids[row] = i64(states.size());
      states.push_back({prints[size_t(row)], rows[size_t(row)], row, 1});
    } else {
      ids[row] = ids[earliest];
      ++states[size_t(ids[row])].count;
    }
  }
  return states;
}

void hash_rows(
    const std::vector<Row>& rows, i64 begin, i64 end, const Options& options, const u64* key, bool shared,
    std::vector<Fingerprint>& prints) {
  const auto hash = [&](i64 from, i64 to) {
    for (i64 i = from; i < to; ++i) {
      if (i + kAhead < to) {
        const Row& soon = rows[size_t(i + kAhead)];
        for (i64 offset = 0; offset < std::min(soon.length, anchor::kPrefetch); offset += 64) __builtin_prefetch(soon.bytes + offset);
      }
      const Row& row = rows[size_t(i)];
      prints[size_t(i)] = anchor::truncated(anchor::fingerprint(row.bytes, row.length, options.seed, key), options.hash_bits);
    }
  };
  if (shared) {
    torch::stable::parallel_for(begin, end, 256, hash);
  } else {
    hash(begin, end);
  }
}

std::vector<State> group_rows(const std::vector<Row>& rows, const Options& options, i64* ids) {
  const i64 total = i64(rows.size());
  u64 key[anchor::kKeyWords];
  anchor::expand_key(options.seed, key);
  std::vector<Fingerprint> prints(rows.size());
  std::vector<State> states;
  Table table(options.bytes_decide);
  i64 all_bytes = 0;
  for (const Row& row : rows) all_bytes += row.length;
  const bool shared = all_bytes >= kSharedFromBlocks * kBlockBytes || total >= kSharedFromBlocks * kBlockRows;
  const i64 block_bytes = shared ? kShared * kBlockBytes : kBlockBytes, block_rows = shared ? kShared * kBlockRows : kBlockRows;
  for (i64 begin = 0, end = 0; begin < total; begin = end) {
    for (i64 bytes = 0; end < total && end - begin < block_rows && bytes < block_bytes; ++end) bytes += rows[size_t(end)].length;
    hash_rows(rows, begin, end, options, key, shared, prints);
    for (i64 i = begin; i < end; ++i) {
      if (i + kAhead < end) table.prefetch(prints[size_t(i + kAhead)], rows[size_t(i + kAhead)]);
      ids[i] = table.enter(states, prints[size_t(i)], rows[size_t(i)], i);
      if (ids[i] < 0) {
        hash_rows(rows, end, total, options, key, shared, prints);
        return group_by_sorting(rows, prints, options.bytes_decide, ids);
      }
    }
  }
  return states;
}

void write_states(const std::vector<State>& states, i64* first_row, i64* counts) {
  for (size_t id = 0; id < states.size(); ++id) {
    first_row[id] = states[id].first_row;
    counts[id] = states[id].count;
  }
}

// data (N,) uint8; starts, lengths, group (S,) int64, row i is data[starts[i] : starts[i] + lengths[i]].
// Returns ids (S,), first_row (G,), counts (G,).
std::tuple<Tensor, Tensor, Tensor> group_packed(
    const Tensor& data, const Tensor& starts, const Tensor& lengths, const Tensor& group, int64_t seed, int64_t hash_bits,
    bool bytes_decide) {
  const i64 total = starts.numel(), size = data.numel();
  STD_TORCH_CHECK(
      data.is_contiguous() && starts.is_contiguous() && lengths.is_contiguous() && group.is_contiguous() && lengths.numel() == total &&
          group.numel() == total,
      "group_packed: starts, lengths and group must be contiguous and equally long");
  const u8* bytes = static_cast<const u8*>(data.const_data_ptr());
  const i64* start = static_cast<const i64*>(starts.const_data_ptr());
  const i64* length = static_cast<const i64*>(lengths.const_data_ptr());
  const i64* label = static_cast<const i64*>(group.const_data_ptr());
  std::vector<Row> rows(static_cast<size_t>(total));
  for (i64 i = 0; i < total; ++i) {
    STD_TORCH_CHECK(
        start[i] >= 0 && length[i] >= 0 && start[i] <= size && length[i] <= size - start[i], "group_packed: a row lies outside of data");
    rows[size_t(i)] = {bytes + start[i], length[i], label[i]};
  }
  Tensor ids = torch::stable::new_empty(starts, {total});
  const std::vector<State> states = group_rows(rows, {u64(seed), hash_bits, bytes_decide}, static_cast<i64*>(ids.mutable_data_ptr()));
  Tensor first_row = torch::stable::new_empty(starts, {i64(states.size())});
  Tensor counts = torch::stable::new_empty(starts, {i64(states.size())});
  write_states(states, static_cast<i64*>(first_row.mutable_data_ptr()), static_cast<i64*>(counts.mutable_data_ptr()));
  return {ids, first_row, counts};
}

// ---- lists of str and bytes ----------------------------------------------------------------------------------------------------

// Bytes objects that had to be made on the way; released on every way out.
struct Owned {
  std::vector<PyObject*> objects;
  ~Owned() {
    for (PyObject* object : objects) Py_DecRef(object);
  }
};

// Fills `row` with the object's bytes, in place where it can; false with a Python error set where it cannot.
bool read_object(PyObject* object, Owned& owned, Row& row) {
  Py_ssize_t length = 0;
  const bool text = PyUnicode_Check(object);
  const char* bytes = nullptr;
  if (text) {
    bytes = PyUnicode_AsUTF8AndSize(object, &length);
    if (bytes == nullptr) {  // a lone surrogate has no UTF-8; its generalised form has, and is equal only to itself
      PyErr_Clear();
      object = PyUnicode_AsEncodedString(object, "utf-8", "surrogatepass");
      if (object == nullptr) return false;
      owned.objects.push_back(object);
    }
  }
  if (bytes == nullptr) {
    char* in_place = nullptr;
    if (PyBytes_AsStringAndSize(object, &in_place, &length) != 0) return false;
    bytes = in_place;
  }
  row.bytes = reinterpret_cast<const u8*>(bytes);
  row.length = i64(length);
  row.group = 2 * row.group + (text ? 0 : 1);  // "a" and b"a" are different states
  return true;
}

i64 group_list(PyObject* list, const i64* group, i64* ids, i64* first_row, i64* counts, const Options& options) {
  const Py_ssize_t total = PyList_Size(list);
  if (total < 0) return -1;
  std::vector<PyObject*> objects(static_cast<size_t>(total));
  for (Py_ssize_t i = 0; i < total; ++i) objects[size_t(i)] = PyList_GetItem(list, i);
  std::vector<Row> rows(objects.size());
  Owned owned;
  for (size_t i = 0; i < objects.size(); ++i) {
    if (i + kAhead < objects.size()) __builtin_prefetch(objects[i + kAhead]);
    rows[i].group = group == nullptr ? 0 : group[i];
    if (!read_object(objects[i], owned, rows[i])) return -1;
  }
  const std::vector<State> states = group_rows(rows, options, ids);
  write_states(states, first_row, counts);
  return i64(states.size());
}

}  // namespace

// Called through ctypes.PyDLL, so with the interpreter locked. `group` (S,) may be null; ids, first_row and counts have room for S
// values. Returns the number of distinct states, or -1 with a Python error set.
extern "C" __attribute__((visibility("default"))) int64_t gigpo_fast_group_list(
    PyObject* list, const int64_t* group, int64_t* ids, int64_t* first_row, int64_t* counts, int64_t seed, int64_t hash_bits,
    int bytes_decide) {
  try {
    return group_list(list, group, ids, first_row, counts, {u64(seed), hash_bits, bytes_decide != 0});
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return -1;
  }
}

STABLE_TORCH_LIBRARY_FRAGMENT(gigpo_fast_C, m) {
  m.def(
      "group_packed(Tensor data, Tensor starts, Tensor lengths, Tensor group, int seed, int hash_bits, bool bytes_decide)"
      " -> (Tensor ids, Tensor first_row, Tensor counts)");
}

STABLE_TORCH_LIBRARY_IMPL(gigpo_fast_C, CPU, m) {
  m.impl("group_packed", TORCH_BOX(&group_packed));
}
