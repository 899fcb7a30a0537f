#pragma once

#include <functional>
#include <string>
#include <type_traits>

#include "bench/support/dump.hpp"
#include "bench/support/measure.hpp"
#include "bench/support/pool.hpp"
#include "bench/support/settings.hpp"
#include "bench/support/tensors.hpp"

namespace rlhf_bench {

/// Registers one line of the table. Names are family/operation/variant/size/threads.
void add_line(const std::string& name, std::function<void(benchmark::State&)> run);

namespace detail {

template <class Call, class Exec>
repeat repeated(const Call& call, const Exec& exec) {
  return [&call, &exec](long times) {
    for (long k = 0; k < times; ++k) {
      auto result = call(exec);
      benchmark::DoNotOptimize(result);
    }
  };
}

}  // namespace detail

/// Measures the call that make(data) returns, f(executor), with a workspace, and writes down its
/// tensors where that is asked for.
template <class Data, class Make>
void run_line(benchmark::State& state, const std::string& name, Data& data, const Make& make,
              const work& of) {
  const auto call = make(data);
  const memory workspace(rlhf::workspace_bytes(call, of.threads));
  const rlhf::serial serial{workspace.data(), workspace.size()};
  const repeat on_one = detail::repeated(call, serial);
  if (of.threads == 1) {
    measure(state, of, on_one, data.prepare);
  } else {
    const pool threads(of.threads);
    const rlhf::parallel<pool> parallel{threads, workspace.data(), workspace.size()};
    const share_loop shared = [&threads](std::ptrdiff_t n, const auto& f) {
      threads.parallel_for(n, f);
    };
    measure(state, of, detail::repeated(call, parallel), data.prepare, on_one, shared);
  }
  if (the_settings().dump.empty()) return;
  if (data.prepare) data.prepare();
  auto result = call(serial);
  if constexpr (requires { static_cast<double>(result.loss); })
    dump(name, data.store, true, static_cast<double>(result.loss));
  else
    dump(name, data.store, false, 0);
}

/// How time grows between two sizes: `growth` is large over small, and should lie within `low` and
/// `high`.
template <class Data, class Make>
void run_growth(benchmark::State& state, Data& small, Data& large, const Make& make, double low,
                double high) {
  const auto small_call = make(small);
  const auto large_call = make(large);
  const memory small_space(rlhf::workspace_bytes(small_call));
  const memory large_space(rlhf::workspace_bytes(large_call));
  const rlhf::serial small_serial{small_space.data(), small_space.size()};
  const rlhf::serial large_serial{large_space.data(), large_space.size()};
  if (small.prepare) small.prepare();
  if (large.prepare) large.prepare();
  for (auto _ : state) {
    const pair_timing t = time_in_turns(detail::repeated(small_call, small_serial),
                                        detail::repeated(large_call, large_serial));
    state.SetIterationTime(t.large);
    state.counters["growth"] = t.large / t.small;
    state.counters["low"] = low;
    state.counters["high"] = high;
    state.counters["small_us"] = t.small * 1e6;
    state.counters["large_us"] = t.large * 1e6;
  }
}

/// What a figure should be; 0: no goal.
struct target {
  double ns = 0;
  double ratio = 0;
};

}  // namespace rlhf_bench
