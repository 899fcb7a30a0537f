#pragma once

// How every line is measured.
//
//   * One warm-up at the exact size, then rounds until the time of a line is spent, never fewer than
//     eleven. A round repeats a short call until it takes 200 us. The figures are those of the
//     fastest round; `quartile_ns` is the lower quartile of all.
//   * CPU time with one thread, wall time otherwise.
//   * Right before and right after, in the same process: an out-of-place copy whose reads and writes
//     together are the operation's minimal bytes, and e^-x in place over a buffer in L1.
//
//     ratio        time over the faster copy's: 1 is the memory's limit
//     goal_ratio   what it should be, where a goal is set
//     ns_per_token time per token (logit, pair, sequence)
//     goal         what it should be on one AVX2 thread, where a goal is set
//     exp_ratio    time over one exponential per logit, for operations on logits
//     GBps         minimal bytes over time
//     copy_ns      the copy's time per token
//     exp_ns       the time of one exponential
//     speedup      wall time of one thread over that of two
//     exp_speedup  the same of exponentials in L1: what the machine's processors are worth just now
//     copy_speedup the same of the copy: what its memory is worth
//     goal_speedup what it should be, where a goal is set
//     unsteady     1 where the two copies differ by more than 10 %

#include <benchmark/benchmark.h>

#include <cstddef>
#include <functional>

namespace rlhf_bench {

/// Repeats a call so many times.
using repeat = std::function<void(long times)>;

/// What one call does.
struct work {
  const char* item = "token";
  double items = 0;
  double bytes = 0;         ///< minimal reads and writes
  double goal = 0;          ///< ns per item, 0: none
  double goal_ratio = 0;    ///< 0: none
  double goal_speedup = 0;  ///< of several threads, where one needs more than 1.5 copies; 0: none
  bool exponentials = false;
  int threads = 1;
};

/// Seconds of the fastest round and of the lower quartile.
struct timing {
  double best = 0, quartile = 0;
};

enum class clock_kind { thread_cpu, wall };

/// `prepare`, where given, runs before each call and is not timed.
timing time_rounds(clock_kind clock, double seconds, const repeat& call,
                   const std::function<void()>& prepare = {});

/// Calls f(0), f(1), ... f(n - 1), shared between threads.
using share_loop =
    std::function<void(std::ptrdiff_t n, const std::function<void(std::ptrdiff_t)>& f)>;

/// Sets the counters. `one_thread` is the same call on one thread, for speedup, and `threads` what
/// the call itself is shared on.
void measure(benchmark::State& state, const work& of, const repeat& call,
             const std::function<void()>& prepare = {}, const repeat& one_thread = {},
             const share_loop& threads = {});

/// Times two calls in turns, so that a busy machine slows both: seconds of the fastest rounds.
struct pair_timing {
  double small = 0, large = 0;
};
pair_timing time_in_turns(const repeat& small, const repeat& large);

}  // namespace rlhf_bench
