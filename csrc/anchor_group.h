// From rows to dense ids on a CPU: blocks of rows are hashed, entered into tables while they are still in the cache, and numbered.
//
// Threads share the rows, not the table: each groups a run of rows by itself, into as many tables as there are runs, by hash. Then each
// merges the tables of one part of the hashes, run by run, so that the row kept for a state is its first one again. Threads meet twice in
// all, however many rows there are; the ids cannot depend on how many threads there are.
// Like anchor_table.h it needs neither torch nor Python.
#pragma once

#include <numeric>

#include "anchor_isa.h"
#include "anchor_short.h"
#include "anchor_table.h"
#include "anchor_threads.h"

namespace anchor {

constexpr i64 kBlockBytes = i64(1) << 15;  // what a core keeps in its nearest cache between hashing and comparing
constexpr i64 kAskBytes = 8;               // rows ahead whose bytes are asked for
constexpr i64 kSharedFrom = i64(1) << 23;  // work, as weighed below, that is worth a second thread
constexpr i64 kRowWeight = 64;             // a row costs about as much as this many bytes
constexpr i64 kMostThreads = 16;
constexpr i64 kBesideHeader = 192;         // bytes that come with an object's header, or in a packed buffer with the row before

inline int threads_for(i64 rows, i64 bytes, i64 threads) {
  return rows * kRowWeight + bytes < kSharedFrom ? 1 : int(std::max(i64(1), std::min(threads, kMostThreads)));
}

class Grouper {
 public:
  // ids (rows.count,) is written by take and finish.
  Grouper(const Rows& rows, const Options& options, int threads, i64* ids)
      : rows_(rows),
        options_(options),
        prints_(options.bytes_decide ? nullptr : new Fingerprint[size_t(rows.count)]),
        same_{rows, prints_.get()},
        ids_(ids),
        sharing_(threads),
        short_hash_(options.seed),
        runs_(size_t(threads)) {
    expand_key(options.seed, key_);
    for (Run& run : runs_) {
      for (size_t part = 0; part < runs_.size(); ++part) run.tables.emplace_back(kFewLines / (runs_.size() * runs_.size()));
      run.entries.resize(runs_.size());
    }
  }
  Grouper(const Grouper&) = delete;

  // All rows, by the calling thread alone. ready(i) is called for each row, in order, some time before the row is read; false ends it.
  template <class Ready>
  bool take(const Ready& ready) {
    return take(runs_[0], 0, rows_.count, ready);
  }

  // All rows, a run a thread.
  void take_all() {
    i64 weight = 0;
    for (i64 i = 0; i < rows_.count; ++i) weight += rows_.length(i) + kRowWeight;
    std::vector<i64> ends(runs_.size(), rows_.count);
    i64 i = 0, seen = 0;
    for (size_t run = 0; run + 1 < runs_.size(); ++run) {
      while (i < rows_.count && seen < weight / i64(runs_.size()) * i64(run + 1)) seen += rows_.length(i++) + kRowWeight;
      ends[run] = i;
    }
    sharing_(i64(runs_.size()), [&](i64 run) {
      take(runs_[size_t(run)], run == 0 ? 0 : ends[size_t(run - 1)], ends[size_t(run)], [&](i64 row) { return ask_for(row); });
    });
  }

  // Makes ids dense, numbered by first occurrence; returns how many there are.
  i64 finish() {
    if (runs_.size() > 1) sharing_(i64(runs_.size()), [&](i64 part) { merge(size_t(part)); });
    Entries aside;
    for (const Table& table : runs_[0].tables) {
      for (i64 k = 0; k < table.set_aside().count; ++k) aside.push(table.set_aside().rows[size_t(k)], 0);
    }
    runs_.clear();
    std::vector<i64> left = aside.count > 0 ? set_aside_again(aside) : std::vector<i64>();
    if (rows_.count > kMostRows) left.resize(size_t(rows_.count)), std::iota(left.begin(), left.end(), i64(0));
    if (!left.empty()) group_by_sorting(left);
    i64 found = 0;
    for (i64 i = 0; i < rows_.count; ++i) {  // ids_[i] is an earlier row of the same state, whose id is known by now, or i itself
      const bool first = ids_[i] == i;
      ids_[i] = first ? found : ids_[ids_[i]];
      found += first;
    }
    return found;
  }

 private:
  struct Run {
    std::vector<Table> tables;
    std::vector<Entries> entries;  // of the block at hand, by table
  };

  bool ask_for(i64 row) const {
    if (rows_.length(row) > kBesideHeader) prefetch_bytes(rows_.bytes(row), rows_.length(row));
    return true;
  }

  template <class Ready>
  bool take(Run& run, i64 begin, i64 end, const Ready& ready) {
    for (i64 i = begin; i < std::min(end, begin + kAskBytes); ++i) {
      if (!ready(i)) return false;
    }
    for (i64 i = begin; i < end;) {
      i = hash(run.entries, i, end, ready);
      if (i < 0) return false;
      if (rows_.count > kMostRows) continue;  // they are all set aside
      for (size_t part = 0; part < run.tables.size(); ++part) run.tables[part].enter(same_, run.entries[part], ids_);
    }
    return true;
  }

  // The hash that a table keeps of a row.
  static u32 place(Fingerprint print, i64 label, i64 kind) {
    return u32((print.low + u64(label) * kPrimeE + u64(kind) * kPrimeC) * kPrimeA >> 32);
  }

  // Hashes a block of rows from `begin` on, for the table that each belongs to; returns its end, or -1 if a row was not ready.
  template <class Ready>
  i64 hash(std::vector<Entries>& entries, i64 begin, i64 end, const Ready& ready) {
    const Rows rows = rows_;  // by value, so that nothing written here could change it
    const Options options = options_;
    const LongFingerprint longer = best_long_fingerprint();
    const u64 tables = entries.size();
    for (Entries& part : entries) part.count = 0;
    const u8* before = nullptr;  // where the row before of this block lies
    i64 i = begin, taken = 0;
    for (const i64 stop = std::min(end, begin + kBatch * i64(tables)); i < stop && taken < kBlockBytes * i64(tables); ++i) {
      if (i + kAskBytes < end && !ready(i + kAskBytes)) return -1;
      const u8* bytes = rows.bytes(i);
      const i64 length = rows.length(i), label = rows.label(i);
      if (bytes == std::exchange(before, bytes) && i > begin && rows.tag(i) == rows.tag(i - 1) && label == rows.label(i - 1)) {
        ids_[i] = i - 1;  // labels are the same object again and again, which needs neither a hash nor a look into a table
        if (!options.bytes_decide) prints_[size_t(i)] = prints_[size_t(i - 1)];
        continue;
      }
      const bool brief = options.bytes_decide && length <= kLongerThan;
      Fingerprint print = brief ? Fingerprint{short_hash_(bytes, length), 0} : fingerprint(bytes, length, options.seed, key_, longer);
      print = truncated(print, options.hash_bits);
      if (!options.bytes_decide) prints_[size_t(i)] = print;
      const u32 hash = place(print, label, rows.kind(i));
      entries[tables == 1 ? 0 : size_t(u64(hash) * tables >> 32)].push(u32(i), hash);
      taken += length;
    }
    return i;
  }

  // A state that an earlier run set aside, or has no room for, is set aside for good: see Table::find. So no state ends in both places.
  void merge(size_t part) {
    Table& all = runs_[0].tables[part];
    for (size_t run = 1; run < runs_.size(); ++run) {
      Entries states, aside;
      {
        const Table table = std::exchange(runs_[run].tables[part], Table());  // gone before `all` grows
        states = table.states();
        aside = table.set_aside();
      }
      all.enter(same_, states, ids_);
      all.enter(same_, aside, ids_);
    }
  }

  template <int kWordRounds, int kEndRounds>
  Fingerprint hashed_again(i64 row) const {
    return truncated(siphash<kWordRounds, kEndRounds>(rows_.bytes(row), rows_.length(row), options_.sip_key[0], options_.sip_key[1]), options_.hash_bits);
  }

  // Somebody made these states collide: they are hashed again by a pseudorandom function of their bytes, which nobody can foresee
  // (SipHash-1-3, as in the tables of Python and Rust), and entered into a table by that. Returns the rows that even this table has no
  // place for.
  std::vector<i64> set_aside_again(Entries& aside) {
    constexpr i64 kPart = 4096;
    sharing_((aside.count + kPart - 1) / kPart, [&](i64 part) {
      for (i64 k = part * kPart; k < std::min(aside.count, (part + 1) * kPart); ++k) {
        const i64 row = aside.rows[size_t(k)];
        aside.hashes[size_t(k)] = place(hashed_again<1, 3>(row), rows_.label(row), rows_.kind(row));
      }
    });
    Table table;
    table.enter(same_, aside, ids_);
    return {table.set_aside().rows.begin(), table.set_aside().rows.begin() + table.set_aside().count};
  }

  struct Aside {
    Fingerprint print;
    i64 label, row;

    bool alike(const Aside& other) const { return print.low == other.print.low && print.high == other.print.high && label == other.label; }
    bool operator<(const Aside& other) const {
      if (print.low != other.print.low) return print.low < other.print.low;
      if (print.high != other.print.high) return print.high < other.print.high;
      return label != other.label ? label < other.label : row < other.row;
    }
  };

  // The last resort, also for more rows than a table can number: sorted by the second hash, which no input can slow down, rows are compared
  // with the states that agree in it: one, or as many as tests that cut the hash bring about.
  void group_by_sorting(const std::vector<i64>& left) {
    std::vector<Aside> rows;
    for (const i64 row : left) rows.push_back({hashed_again<2, 4>(row), rows_.label(row), row});
    std::sort(rows.begin(), rows.end());
    std::vector<i64> firsts;  // of the states that agree with the row before
    for (size_t k = 0; k < rows.size(); ++k) {
      if (k == 0 || !rows[k - 1].alike(rows[k])) firsts.clear();
      const i64 row = rows[k].row;
      const auto found = std::find_if(firsts.begin(), firsts.end(), [&](i64 first) { return same_(first, row); });
      ids_[row] = found == firsts.end() ? row : *found;
      if (found == firsts.end()) firsts.push_back(row);
    }
  }

  Rows rows_;
  Options options_;
  std::unique_ptr<Fingerprint[]> prints_;
  Sameness same_;
  i64* ids_;
  Sharing sharing_;
  u64 key_[kKeyWords];
  ShortHash short_hash_;
  std::vector<Run> runs_;
};

// first_row, counts (found,) of dense ids (count,).
inline void describe_groups(const i64* ids, i64 count, i64 found, i64* first_row, i64* counts) {
  std::fill(counts, counts + found, i64(0));
  i64 i = 0;
  for (i64 next = 0; next < found; ++i) {  // which row is a first one cannot be foreseen, so there is no branch on it
    first_row[next] = i;
    next += ids[i] == next;
    ++counts[ids[i]];
  }
  for (; i < count; ++i) ++counts[ids[i]];
}

}  // namespace anchor
