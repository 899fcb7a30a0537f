#include "rlhf/advantage/group_relative_advantage.hpp"

#include "bench/support/measure.hpp"
#include "rlhf/backend/host.hpp"

namespace {

// Bytes per sequence: the reward read, the advantage written.
void group_reduce_grpo(benchmark::State& state) {
  const std::ptrdiff_t n = state.range(0);
  const auto reward = rlhf_bench::uniform(n, 0, 1);
  std::vector<float> advantage(reward.size());
  rlhf_bench::measure(state, static_cast<double>(n), 8, 15, [&] {
    rlhf::group_relative_advantage<float>({.reward = reward}, {.advantage = advantage},
                                          {.group_size = rlhf::group_size{8}});
  });
}
BENCHMARK(group_reduce_grpo)->Arg(512)->Arg(65536)->UseManualTime();

}  // namespace
