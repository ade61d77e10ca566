// Anchor grouping by similarity on a CPU: each text joins the first group of its task whose first text is similar enough.
//
// The rule is sequential, so the pairs of a task are taken in order; what makes that bearable is that nearly all pairs end at one of
// two upper bounds of the ratio: the shorter length, and the letters that the texts have in common.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <unordered_map>

#include "similar_match.h"

namespace {

using similar::i32;
using similar::i64;
using similar::Text;
using torch::stable::Tensor;

constexpr i32 kBuckets = 64;  // letters share buckets where there are more: the bound is then looser, and still a bound
constexpr i32 kCodePoints = 0x110000;

// Rewrites code points as dense numbers, so that tables of letters stay small; returns how many there are.
i32 number_letters(const i32* codes, i64 total, std::vector<i32>& letters) {
  std::vector<i32> number;
  i32 alphabet = 0;
  letters.resize(size_t(total));
  for (i64 i = 0; i < total; ++i) {
    STD_TORCH_CHECK(codes[i] >= 0 && codes[i] < kCodePoints, "first_fit: codes must be Unicode code points");
    if (size_t(codes[i]) >= number.size()) number.resize(size_t(codes[i]) + 1, -1);
    i32& letter = number[size_t(codes[i])];
    if (letter < 0) letter = alphabet++;
    letters[size_t(i)] = letter;
  }
  return alphabet;
}

void count_letters(const Text& text, i32* counts) {
  std::fill(counts, counts + kBuckets, 0);
  for (i32 i = 0; i < text.length; ++i) ++counts[text.letters[i] % kBuckets];
}

i64 letters_in_common(const i32* x, const i32* y) {
  i32 common = 0;
  for (i32 i = 0; i < kBuckets; ++i) common += std::min(x[i], y[i]);
  return common;
}

// The first texts of the groups of one task, with their letters counted.
struct Firsts {
  std::vector<i64> group;
  std::vector<Text> text;
  std::vector<i32> counts;
};

// codes (N,) int32, offsets (T + 1,) int64: text t is codes[offsets[t] : offsets[t + 1]]; task (T,) int64. Returns ids (T,) int64.
Tensor first_fit(const Tensor& codes, const Tensor& offsets, const Tensor& task, double threshold) {
  const i64 texts = task.numel();
  STD_TORCH_CHECK(
      codes.is_contiguous() && offsets.is_contiguous() && task.is_contiguous() && offsets.numel() == texts + 1,
      "first_fit: tensors must be contiguous, with one offset more than there are tasks");
  const i64* offset = static_cast<const i64*>(offsets.const_data_ptr());
  const i64* label = static_cast<const i64*>(task.const_data_ptr());
  i64 longest = 0;
  for (i64 t = 0; t < texts; ++t) {
    const i64 length = offset[t + 1] - offset[t];
    STD_TORCH_CHECK(
        offset[t] >= 0 && length >= 0 && length < (i64(1) << 31) - 1 && offset[t + 1] <= codes.numel(),
        "first_fit: a text lies outside of codes");
    longest = std::max(longest, length);
  }
  std::vector<i32> letters;
  const i32 alphabet = number_letters(static_cast<const i32*>(codes.const_data_ptr()), codes.numel(), letters);
  similar::Matcher matcher(alphabet, longest);
  std::unordered_map<i64, Firsts> tasks;
  std::vector<i32> counts(size_t(kBuckets), 0);
  i64 groups = 0;
  Tensor ids = torch::stable::new_empty(offsets, {texts});
  i64* id = static_cast<i64*>(ids.mutable_data_ptr());
  for (i64 t = 0; t < texts; ++t) {
    const Text text{letters.data() + offset[t], i32(offset[t + 1] - offset[t])};
    Firsts& firsts = tasks[label[t]];
    count_letters(text, counts.data());
    id[t] = -1;
    for (size_t g = 0; g < firsts.group.size() && id[t] < 0; ++g) {
      const Text& first = firsts.text[g];
      const i64 both = i64(text.length) + first.length;
      const i64 needed = both == 0 ? 0 : similar::needed_letters(both, threshold);
      if (needed <= std::min(text.length, first.length) && needed <= letters_in_common(counts.data(), &firsts.counts[g * kBuckets]) &&
          matcher.reaches(text, first, needed)) {
        id[t] = firsts.group[g];
      }
    }
    if (id[t] < 0) {
      id[t] = groups++;
      firsts.group.push_back(id[t]);
      firsts.text.push_back(text);
      firsts.counts.insert(firsts.counts.end(), counts.begin(), counts.end());
    }
  }
  return ids;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gigpo_fast_C, m) {
  m.def("first_fit(Tensor codes, Tensor offsets, Tensor task, float threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gigpo_fast_C, CPU, m) {
  m.impl("first_fit", TORCH_BOX(&first_fit));
}
