#pragma once

// How every benchmark measures: the best of many runs at the exact size, beside an out-of-place copy
// that moves the same bytes in the same process, taken before and after.
//
//     ns      best time per token (logit, pair, sequence)
//     ratio   that time over the copy's
//     GBps    minimal bytes over the best time
//     goal    ns to reach on one AVX2 thread of a Zen 3 class machine, 0 where none is set

#include <benchmark/benchmark.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace rlhf_bench {

inline double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// Best of `rounds` copies that read and write `bytes` together.
inline double copy_seconds(std::size_t bytes, int rounds) {
  static std::vector<char> from, to;
  if (from.size() < bytes / 2) {
    from.assign(bytes / 2, 1);
    to.assign(bytes / 2, 2);
  }
  double best = 1e30;
  for (int k = 0; k < rounds; ++k) {
    const auto begin = std::chrono::steady_clock::now();
    std::memcpy(to.data(), from.data(), bytes / 2);
    benchmark::DoNotOptimize(to.data());
    benchmark::ClobberMemory();
    const double s = seconds_since(begin);
    if (s < best) best = s;
  }
  return best;
}

/// Runs `call` under Google Benchmark and sets the counters above.
template <class Call>
void measure(benchmark::State& state, double items, double bytes_per_item, double goal_ns,
             const Call& call) {
  const auto bytes = static_cast<std::size_t>(items * bytes_per_item);
  double copy = copy_seconds(bytes, 5);
  call();
  double best = 1e30;
  for (auto _ : state) {
    const auto begin = std::chrono::steady_clock::now();
    call();
    const double s = seconds_since(begin);
    if (s < best) best = s;
    state.SetIterationTime(s);
  }
  const double after = copy_seconds(bytes, 5);
  if (after < copy) copy = after;
  state.counters["ns"] = best / items * 1e9;
  state.counters["ratio"] = best / copy;
  state.counters["GBps"] = static_cast<double>(bytes) / best * 1e-9;
  state.counters["goal"] = goal_ns;
}

/// Uniform in [low, high), the same on every machine.
class numbers {
  std::uint32_t state_ = 1;

 public:
  float operator()(float low, float high) {
    state_ = state_ * 1664525u + 1013904223u;
    return low + (high - low) * static_cast<float>(state_ >> 8) * 0x1p-24f;
  }
};

inline std::vector<float> uniform(std::ptrdiff_t n, float low, float high) {
  static numbers random;
  std::vector<float> v(static_cast<std::size_t>(n));
  for (float& x : v) x = random(low, high);
  return v;
}

inline std::vector<std::uint8_t> holes(std::ptrdiff_t n, float share) {
  static numbers random;
  std::vector<std::uint8_t> v(static_cast<std::size_t>(n));
  for (auto& x : v) x = random(0, 1) < share ? 0 : 1;
  return v;
}

}  // namespace rlhf_bench
