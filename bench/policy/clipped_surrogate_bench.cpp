#include "rlhf/policy/clipped_surrogate.hpp"

#include "bench/support/measure.hpp"
#include "rlhf/backend/host.hpp"

namespace {

using rlhf_bench::measure;

struct batch {
  std::ptrdiff_t rows, columns;
  std::vector<float> log_prob, old_log_prob, advantage, gradient;
  std::vector<std::uint8_t> mask;
  std::vector<std::int32_t> length;

  explicit batch(const benchmark::State& state)
      : rows(state.range(0)),
        columns(state.range(1)),
        log_prob(rlhf_bench::uniform(rows * columns, -3, 0)),
        old_log_prob(rlhf_bench::uniform(rows * columns, -0.2f, 0.2f)),
        advantage(rlhf_bench::uniform(rows * columns, -1, 1)),
        gradient(log_prob.size()),
        mask(rlhf_bench::holes(rows * columns, 0.2f)),
        length(static_cast<std::size_t>(rows), static_cast<std::int32_t>(columns)) {
    for (std::size_t k = 0; k < log_prob.size(); ++k) old_log_prob[k] += log_prob[k];
  }
  rlhf::shape shape() const { return {rows, columns}; }
  rlhf::policy_batch<float> inputs() const {
    return {.log_prob = {log_prob, shape()},
            .old_log_prob = {old_log_prob, shape()},
            .advantage = {advantage, shape()}};
  }
  rlhf::policy_output<float> outputs() { return {.d_log_prob = {gradient, shape()}}; }
  double tokens() const { return static_cast<double>(rows * columns); }
};

// Bytes: log_prob, old_log_prob, advantage read, gradient written: 16; the mask: 1 more.
void map_reduce_ppo_lengths(benchmark::State& state) {
  batch b(state);
  auto in = b.inputs();
  in.layout = rlhf::lengths(b.length);
  measure(state, b.tokens(), 16, b.columns <= 16 ? 1.6 : 1.1, [&] {
    rlhf::clipped_surrogate_loss<float>(in, b.outputs(),
                                        {.over = rlhf::aggregation::token_mean(b.tokens())});
  });
}

void map_reduce_ppo_mask(benchmark::State& state) {
  batch b(state);
  auto in = b.inputs();
  in.mask = {b.mask, b.shape()};
  measure(state, b.tokens(), 17, b.columns <= 16 ? 2.0 : 1.35, [&] {
    rlhf::clipped_surrogate_loss<float>(in, b.outputs(),
                                        {.over = rlhf::aggregation::token_mean(b.tokens())});
  });
}

void sizes(benchmark::internal::Benchmark* b) {
  b->Args({8, 512})->Args({64, 1024})->Args({512, 2048})->Args({65536, 16})->UseManualTime();
}
BENCHMARK(map_reduce_ppo_lengths)->Apply(sizes);
BENCHMARK(map_reduce_ppo_mask)->Apply(sizes);

}  // namespace
