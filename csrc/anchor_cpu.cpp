// Anchor grouping on a CPU: equal states of one episode group get one id, numbered by first occurrence (anchor_group.h does the work).
//
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

#include <optional>
#include <tuple>

#include "anchor_group.h"

namespace {

using anchor::i64;
using anchor::u64;
using anchor::u8;
using torch::stable::Tensor;

const i64* int64s(const Tensor& tensor, i64 count, const char* message) {
  STD_TORCH_CHECK(tensor.is_contiguous() && tensor.numel() == count, message);
  return static_cast<const i64*>(tensor.const_data_ptr());
}

// data (N,) uint8; row i is data[starts[i] : starts[i] + lengths[i]], both (S,) int64; or, with neither, row i of S is width bytes at
// i * width. group (S,) int64 or nothing. Returns ids (S,), first_row (G,), counts (G,).
std::tuple<Tensor, Tensor, Tensor> group_packed(
    const Tensor& data, int64_t total, int64_t width, const std::optional<Tensor>& starts, const std::optional<Tensor>& lengths,
    const std::optional<Tensor>& group, int64_t seed, int64_t sip_low, int64_t sip_high, int64_t hash_bits, bool bytes_decide) {
  const i64 size = data.numel();
  STD_TORCH_CHECK(data.is_contiguous() && total >= 0 && width >= 0, "group_packed: data must be contiguous, total and width not negative");
  anchor::Rows rows = {reinterpret_cast<u64>(data.const_data_ptr()), nullptr, nullptr, width, 0, nullptr, total};
  i64 bytes = 0;
  if (group.has_value()) rows.labels = int64s(*group, total, "group_packed: group must be contiguous, one label a row");
  if (starts.has_value() && lengths.has_value()) {
    rows.starts = int64s(*starts, total, "group_packed: starts must be contiguous, one a row");
    rows.lengths = int64s(*lengths, total, "group_packed: lengths must be contiguous, one a row");
    bool outside = false;
    for (i64 i = 0; i < total; ++i) {
      const i64 start = rows.starts[i], length = rows.lengths[i];
      outside |= start < 0 || length < 0 || start > size || length > size - start;
      bytes += outside ? 0 : length;
    }
    STD_TORCH_CHECK(!outside, "group_packed: a row lies outside of data");
  } else {
    STD_TORCH_CHECK(width == 0 || total <= size / width, "group_packed: a row lies outside of data");
    bytes = total * width;
  }
  Tensor ids = torch::stable::empty({total}, torch::headeronly::ScalarType::Long);
  anchor::Grouper grouper(
      rows, {u64(seed), {u64(sip_low), u64(sip_high)}, hash_bits, bytes_decide},
      anchor::threads_for(total, bytes, i64(torch::stable::get_num_threads())), static_cast<i64*>(ids.mutable_data_ptr()));
  grouper.take_all();
  const i64 found = grouper.finish();
  Tensor first_row = torch::stable::new_empty(ids, {found}), counts = torch::stable::new_empty(ids, {found});
  anchor::describe_groups(
      static_cast<const i64*>(ids.const_data_ptr()), total, found, static_cast<i64*>(first_row.mutable_data_ptr()),
      static_cast<i64*>(counts.mutable_data_ptr()));
  return {ids, first_row, counts};
}

// ---- lists of str and bytes ----------------------------------------------------------------------------------------------------

// The objects that rows point into must live and the list must not change until all is done. The interpreter stays locked, and no Python
// code runs, for which garbage collection, and with it finalisers, must wait. Bytes objects made on the way are released at the end.
// That is also why other threads may read the bytes: they touch no object, only memory that nobody writes.
struct Held {
  std::vector<PyObject*> made;
  const int collecting = PyGC_Disable();

  ~Held() {
    for (PyObject* object : made) Py_DecRef(object);
    if (collecting) PyGC_Enable();
  }
};

enum class Reading { kDone, kOtherType, kError };

Reading read_bytes_or_surrogates(PyObject* object, Held& held, i64& start, i64& length) {
  const bool text = PyUnicode_Check(object);
  if (text) {  // a lone surrogate has no UTF-8; its generalised form has, and is equal only to itself
    PyErr_Clear();
    object = PyUnicode_AsEncodedString(object, "utf-8", "surrogatepass");
    if (object == nullptr) return Reading::kError;
    held.made.push_back(object);
  } else if (!PyBytes_Check(object)) {
    return Reading::kOtherType;
  }
  char* bytes = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(object, &bytes, &size) != 0) return Reading::kError;
  start = static_cast<i64>(reinterpret_cast<u64>(bytes));
  length = 2 * i64(size) + (text ? 0 : 1);
  return Reading::kDone;
}

// Where the object's bytes lie, without a copy where there need be none; length counts double, plus one for bytes, as "a" is not b"a".
inline Reading read_object(PyObject* object, Held& held, i64& start, i64& length) {
  const bool text = Py_TYPE(object) == &PyUnicode_Type || PyUnicode_Check(object);  // the second asks the type, which costs a call
  Py_ssize_t size = 0;
  const char* bytes = text ? PyUnicode_AsUTF8AndSize(object, &size) : nullptr;
  if (__builtin_expect(bytes == nullptr, 0)) return read_bytes_or_surrogates(object, held, start, length);
  start = static_cast<i64>(reinterpret_cast<u64>(bytes));
  length = 2 * i64(size);
  return Reading::kDone;
}

// The bytes of the whole list, judged by a few of its objects; the rest is not touched yet.
i64 estimated_bytes(PyObject* list, i64 total) {
  const i64 step = std::max(i64(1), total / 16);
  i64 seen = 0, bytes = 0;
  for (i64 i = 0; i < total; i += step, ++seen) {
    PyObject* object = PyList_GetItem(list, Py_ssize_t(i));
    if (PyUnicode_Check(object)) bytes += i64(PyUnicode_GetLength(object));
    if (PyBytes_Check(object)) bytes += i64(PyBytes_Size(object));
  }
  return seen == 0 ? 0 : bytes / seen * total;
}

i64 group_list(PyObject* list, const i64* group, i64* ids, const anchor::Options& options) {
  constexpr i64 kObjectsAhead = 16, kLine = 64;
  const i64 total = i64(PyList_Size(list));
  if (total < 0) return -1;
  Held held;
  const std::unique_ptr<i64[]> starts(new i64[size_t(total)]), lengths(new i64[size_t(total)]);
  const anchor::Rows rows = {0, starts.get(), lengths.get(), 0, 1, group, total};
  const int threads = anchor::threads_for(total, estimated_bytes(list, total), i64(torch::stable::get_num_threads()));
  const i64 asked = threads == 1 ? 2 * kLine : kLine;  // a short text follows its header; of a longer one the rest is asked for below
  PyObject* soon[kObjectsAhead];
  const auto ask = [&](i64 i) {
    PyObject* object = soon[i & (kObjectsAhead - 1)] = PyList_GetItem(list, Py_ssize_t(i));
    for (i64 at = 0; at < asked; at += kLine) __builtin_prefetch(reinterpret_cast<const char*>(object) + at);
  };
  Reading reading = Reading::kDone;
  const auto ready = [&](i64 i) {
    PyObject* object = soon[i & (kObjectsAhead - 1)];
    if (i + kObjectsAhead < total) ask(i + kObjectsAhead);
    reading = read_object(object, held, starts[size_t(i)], lengths[size_t(i)]);
    if (reading != Reading::kDone) return false;
    if (threads > 1) return true;
    if (rows.length(i) > asked) {
      anchor::prefetch_bytes(rows.bytes(i), rows.length(i));
    } else {
      __builtin_prefetch(rows.bytes(i) + rows.length(i));  // a text that begins late in a line ends in one line more
    }
    return true;
  };
  for (i64 i = 0; i < std::min(total, kObjectsAhead); ++i) ask(i);
  anchor::Grouper grouper(rows, options, threads, ids);
  if (threads == 1) {
    grouper.take(ready);
  } else {
    for (i64 i = 0; i < total && ready(i); ++i) continue;
    if (reading == Reading::kDone) grouper.take_all();
  }
  if (reading != Reading::kDone) return reading == Reading::kError ? -1 : -2;
  return grouper.finish();
}

}  // namespace

// Called through ctypes.PyDLL, so with the interpreter locked. `group` (S,) may be null; ids has room for S values. Returns the number
// of distinct states, -1 with a Python error set, or -2 if something in the list is neither str nor bytes.
extern "C" __attribute__((visibility("default"))) int64_t gigpo_fast_group_list(
    PyObject* list, const int64_t* group, int64_t* ids, int64_t seed, int64_t sip_low, int64_t sip_high, int64_t hash_bits,
    int bytes_decide) {
  try {
    return group_list(list, group, ids, {u64(seed), {u64(sip_low), u64(sip_high)}, hash_bits, bytes_decide != 0});
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return -1;
  }
}

// What the ids say of their groups: first_row and counts have room for `found` values.
extern "C" __attribute__((visibility("default"))) void gigpo_fast_describe_groups(
    const int64_t* ids, int64_t count, int64_t found, int64_t* first_row, int64_t* counts) {
  anchor::describe_groups(ids, count, found, first_row, counts);
}

STABLE_TORCH_LIBRARY_FRAGMENT(gigpo_fast_C, m) {
  m.def(
      "group_packed(Tensor data, int total, int width, Tensor? starts, Tensor? lengths, Tensor? group, int seed, int sip_low, int sip_high,"
      " int hash_bits, bool bytes_decide) -> (Tensor ids, Tensor first_row, Tensor counts)");
}

STABLE_TORCH_LIBRARY_IMPL(gigpo_fast_C, CPU, m) {
  m.impl("group_packed", TORCH_BOX(&group_packed));
}
