#include "bench/support/measure.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <ctime>
#include <vector>

#include "bench/support/memory.hpp"
#include "bench/support/settings.hpp"
#include "rlhf/backend/host.hpp"
#include "rlhf/math/exp.hpp"

namespace rlhf_bench {
namespace {

constexpr double round_seconds = 200e-6;  // short calls are repeated to this
constexpr int least_rounds = 11;
constexpr int most_rounds = 2000;

double now(clock_kind clock) {
#if defined(CLOCK_THREAD_CPUTIME_ID)
  if (clock == clock_kind::thread_cpu) {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
#endif
  static_cast<void>(clock);
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double seconds_of(clock_kind clock, const repeat& call, long times) {
  const double begin = now(clock);
  call(times);
  return now(clock) - begin;
}

/// How often a call is repeated in one round.
long repeats_of(const repeat& call) {
  double s = seconds_of(clock_kind::wall, call, 1);
  if (s >= round_seconds) return 1;
  s = seconds_of(clock_kind::wall, call, 1);  // the first paid for page faults
  long n = 1;
  while (s < round_seconds / 4) {
    n *= 4;
    s = seconds_of(clock_kind::wall, call, n);
  }
  return std::max(1L, std::lround(static_cast<double>(n) * round_seconds / s));
}

/// Memory of the copies.
struct copy_memory {
  memory from, to;
};
const copy_memory& memory_of_copy(std::size_t half) {
  static copy_memory m;
  const bool wasteful = m.from.size() > std::size_t{1} << 30 && m.from.size() / 4 > half;
  if (m.from.size() < half || wasteful) {
    m.from = memory(half);
    m.to = memory(half);
    std::memset(m.from.data(), 1, half);
    std::memset(m.to.data(), 2, half);
  }
  return m;
}

/// Seconds of the fastest copy that reads bytes / 2 and writes bytes / 2.
double copy_seconds(clock_kind clock, double bytes) {
  const auto half = static_cast<std::size_t>(bytes / 2);
  const copy_memory& m = memory_of_copy(half);
  const repeat copy = [half, &m](long times) {
    for (long k = 0; k < times; ++k) {
      std::memcpy(m.to.data(), m.from.data(), half);
      benchmark::ClobberMemory();
    }
  };
  return time_rounds(clock, 0.002, copy).best;
}

constexpr std::size_t exps = 4096;  // 16 KiB

/// e^-x in place, which stays within 0 and 1 for ever.
void exponentials(float* x) {
  using V = rlhf::math::native_lane<float>;
  constexpr std::size_t step = static_cast<std::size_t>(rlhf::math::width<V>);
  for (std::size_t k = 0; k < exps; k += step)
    rlhf::math::store(x + k, rlhf::math::exp(-rlhf::math::load<V>(x + k)));
  benchmark::ClobberMemory();
}

/// Seconds of one exponential.
double exp_seconds(clock_kind clock) {
  static std::vector<float> x(exps, 0.5f);
  const repeat loop = [](long times) {
    for (long t = 0; t < times; ++t) exponentials(x.data());
  };
  return time_rounds(clock, 0.002, loop).best / static_cast<double>(exps);
}

/// Time of f(0) ... f(n - 1) one after the other, over the time when they are shared.
double speedup_of(const share_loop& threads, std::ptrdiff_t n,
                  const std::function<void(std::ptrdiff_t)>& f) {
  constexpr double seconds = 0.004;
  const repeat alone = [&](long times) {
    for (long t = 0; t < times; ++t)
      for (std::ptrdiff_t i = 0; i < n; ++i) f(i);
  };
  const repeat shared = [&](long times) {
    for (long t = 0; t < times; ++t) threads(n, f);
  };
  const double one = time_rounds(clock_kind::wall, seconds, alone).best;
  return one / time_rounds(clock_kind::wall, seconds, shared).best;
}

double exp_speedup(const share_loop& threads) {
  constexpr std::ptrdiff_t buffers = 16;
  constexpr int turns = 16;  // 30 us and more: the threads' start is small beside them
  static std::vector<float> x(exps * buffers, 0.5f);
  return speedup_of(threads, buffers, [](std::ptrdiff_t i) {
    for (int k = 0; k < turns; ++k) exponentials(x.data() + static_cast<std::size_t>(i) * exps);
  });
}

double copy_speedup(const share_loop& threads, double bytes) {
  constexpr std::size_t parts = 16;
  const auto half = static_cast<std::size_t>(bytes / 2);
  const copy_memory& m = memory_of_copy(half);
  return speedup_of(threads, parts, [half, &m](std::ptrdiff_t i) {
    const std::size_t part = static_cast<std::size_t>(i);
    const std::size_t from = part * half / parts, to = (part + 1) * half / parts;
    std::memcpy(m.to.data() + from, m.from.data() + from, to - from);
    benchmark::ClobberMemory();
  });
}

}  // namespace

timing time_rounds(clock_kind clock, double seconds, const repeat& call,
                   const std::function<void()>& prepare) {
  if (prepare) prepare();
  long repeats = 1;
  if (prepare)
    call(1);
  else
    repeats = repeats_of(call);
  std::vector<double> rounds;
  const double begin = now(clock_kind::wall);
  double timed = 0;
  while (static_cast<int>(rounds.size()) < least_rounds ||
         (timed < seconds && now(clock_kind::wall) - begin < 4 * seconds &&
          static_cast<int>(rounds.size()) < most_rounds)) {
    if (prepare) prepare();
    const double s = seconds_of(clock, call, repeats);
    timed += s;
    rounds.push_back(s / static_cast<double>(repeats));
  }
  std::sort(rounds.begin(), rounds.end());
  return {.best = rounds.front(), .quartile = rounds[rounds.size() / 4]};
}

void measure(benchmark::State& state, const work& of, const repeat& call,
             const std::function<void()>& prepare, const repeat& one_thread,
             const share_loop& threads) {
  const double seconds = the_settings().seconds;
  const clock_kind clock = of.threads == 1 ? clock_kind::thread_cpu : clock_kind::wall;
  for (auto _ : state) {
    const double copy_before = copy_seconds(clock, of.bytes);
    const double exp_before = exp_seconds(clock);
    timing one;
    if (one_thread) one = time_rounds(clock, seconds / 2, one_thread, prepare);
    const timing t = time_rounds(clock, seconds, call, prepare);
    const double exp_after = exp_seconds(clock);
    const double copy_after = copy_seconds(clock, of.bytes);

    const double copy = std::min(copy_before, copy_after);
    const double exp = std::min(exp_before, exp_after);
    const double ns = t.best / of.items * 1e9;
    state.SetIterationTime(t.best);
    state.SetLabel("rlhf");
    auto& counters = state.counters;
    counters["ratio"] = t.best / copy;
    counters[std::string("ns_per_") + of.item] = ns;
    if (of.goal > 0) counters["goal"] = of.goal;
    if (of.goal_ratio > 0) counters["goal_ratio"] = of.goal_ratio;
    if (of.exponentials) counters["exp_ratio"] = ns * 1e-9 / exp;
    if (one_thread) {
      counters["speedup"] = one.best / t.best;
      if (of.goal_speedup > 0 && one.best > 1.5 * copy) counters["goal_speedup"] = of.goal_speedup;
    }
    if (threads) {
      counters["exp_speedup"] = exp_speedup(threads);
      counters["copy_speedup"] = copy_speedup(threads, of.bytes);
    }
    counters["GBps"] = of.bytes / t.best * 1e-9;
    counters["copy_ns"] = copy / of.items * 1e9;
    counters["exp_ns"] = exp * 1e9;
    counters["quartile_ns"] = t.quartile / of.items * 1e9;
    counters["unsteady"] = std::abs(copy_before - copy_after) > 0.1 * copy ? 1 : 0;
  }
}

pair_timing time_in_turns(const repeat& small, const repeat& large) {
  const long small_repeats = repeats_of(small), large_repeats = repeats_of(large);
  pair_timing best{1e30, 1e30};
  const double begin = now(clock_kind::wall);
  for (int k = 0; k < least_rounds ||
                  (k < most_rounds && now(clock_kind::wall) - begin < 3 * the_settings().seconds);
       ++k) {
    const clock_kind clock = clock_kind::thread_cpu;
    best.small = std::min(
        best.small, seconds_of(clock, small, small_repeats) / static_cast<double>(small_repeats));
    best.large = std::min(
        best.large, seconds_of(clock, large, large_repeats) / static_cast<double>(large_repeats));
  }
  return best;
}

}  // namespace rlhf_bench
