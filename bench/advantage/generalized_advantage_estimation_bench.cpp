#include "rlhf/advantage/generalized_advantage_estimation.hpp"

#include "bench/support/measure.hpp"
#include "rlhf/backend/host.hpp"

namespace {

struct rollout {
  std::ptrdiff_t rows, columns;
  std::vector<float> reward, value, advantage, returns;
  std::vector<std::uint8_t> mask;
  std::vector<std::int32_t> length;

  explicit rollout(const benchmark::State& state)
      : rows(state.range(0)),
        columns(state.range(1)),
        reward(rlhf_bench::uniform(rows * columns, -1, 1)),
        value(rlhf_bench::uniform(rows * columns, -1, 1)),
        advantage(reward.size()),
        returns(reward.size()),
        mask(rlhf_bench::holes(rows * columns, 0.2f)),
        length(static_cast<std::size_t>(rows), static_cast<std::int32_t>(columns)) {}
  rlhf::shape shape() const { return {rows, columns}; }
  double tokens() const { return static_cast<double>(rows * columns); }
};

// Bytes: reward and value read, advantage and returns written: 16; the mask: 1 more.
void reverse_scan_gae_lengths(benchmark::State& state) {
  rollout r(state);
  rlhf_bench::measure(state, r.tokens(), 16, r.columns <= 16 ? 1.2 : 0.75, [&] {
    rlhf::generalized_advantage_estimation<float>(
        {.reward = {r.reward, r.shape()}, .value = {r.value, r.shape()},
         .layout = rlhf::lengths(r.length)},
        {.advantage = {r.advantage, r.shape()}, .returns = {r.returns, r.shape()}}, {});
  });
}

void reverse_scan_gae_mask(benchmark::State& state) {
  rollout r(state);
  rlhf_bench::measure(state, r.tokens(), 17, r.columns <= 1024 ? 1.1 : 1.7, [&] {
    rlhf::generalized_advantage_estimation<float>(
        {.reward = {r.reward, r.shape()}, .value = {r.value, r.shape()}, .mask = {r.mask, r.shape()}},
        {.advantage = {r.advantage, r.shape()}, .returns = {r.returns, r.shape()}}, {});
  });
}

void sizes(benchmark::internal::Benchmark* b) {
  b->Args({64, 1024})->Args({512, 2048})->Args({1, 1048576})->Args({65536, 16})->UseManualTime();
}
BENCHMARK(reverse_scan_gae_lengths)->Apply(sizes);
BENCHMARK(reverse_scan_gae_mask)->Apply(sizes);

}  // namespace
