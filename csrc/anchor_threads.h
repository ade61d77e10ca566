// Work shared with threads that may come late. The caller works too, and waits only for parts that a helper has begun: on a machine that is
// busy with other things, where a pool's threads take a scheduler's turn or two to arrive (6 to 10 ms were measured for torch's, whatever
// the work), it does everything itself and loses nothing.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "anchor_hash.h"

namespace anchor {

class Sharing {
 public:
  explicit Sharing(i64 threads) : threads_(threads) {}

  // Calls part(k) once for each k in [0, parts), in any order, on up to as many threads; returns when all have returned.
  template <class Part>
  void operator()(i64 parts, const Part& part) const {
    if (threads_ <= 1 || parts <= 1) {
      for (i64 k = 0; k < parts; ++k) part(k);
      return;
    }
    const auto work = std::make_shared<Work>(parts, std::cref(part));
    for (i64 helper = 1; helper < threads_ && helper < parts; ++helper) {
      try {
        std::thread([work] { work->join_in(); }).detach();
      } catch (const std::system_error&) {
        break;  // no more threads to be had: fewer do it
      }
    }
    work->join_in();
    work->finish();
  }

 private:
  // Outlives the call where a helper comes too late; that one finds no part left and touches nothing else.
  struct Work {
    Work(i64 count, std::function<void(i64)> part) : parts(count), run(std::move(part)) {}

    void join_in() {
      for (i64 k = next++; k < parts; k = next++) {
        std::exception_ptr failure;
        try {
          run(k);
        } catch (...) {
          failure = std::current_exception();
        }
        const std::lock_guard<std::mutex> hold(lock);
        if (failure) error = failure;
        if (++done == parts) all_done.notify_one();
      }
    }

    void finish() {
      std::unique_lock<std::mutex> hold(lock);
      all_done.wait(hold, [this] { return done == parts; });
      if (error) std::rethrow_exception(error);
    }

    const i64 parts;
    const std::function<void(i64)> run;
    std::atomic<i64> next{0};
    i64 done = 0;
    std::exception_ptr error;
    std::mutex lock;
    std::condition_variable all_done;
  };

  i64 threads_;
};

}  // namespace anchor
