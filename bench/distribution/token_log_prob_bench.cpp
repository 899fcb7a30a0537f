#include "rlhf/distribution/token_log_prob.hpp"

#include "bench/support/measure.hpp"
#include "rlhf/backend/host.hpp"
#include "rlhf/distribution/cross_entropy.hpp"
#include "rlhf/math/exp.hpp"

namespace {

struct rows {
  std::ptrdiff_t n, classes;
  std::vector<float> logits, log_prob, entropy;
  std::vector<std::int32_t> label;

  explicit rows(const benchmark::State& state)
      : n(state.range(0)),
        classes(state.range(1)),
        logits(rlhf_bench::uniform(n * classes, -6, 6)),
        log_prob(static_cast<std::size_t>(n)),
        entropy(static_cast<std::size_t>(n)),
        label(static_cast<std::size_t>(n)) {
    for (std::size_t i = 0; i < label.size(); ++i)
      label[i] = static_cast<std::int32_t>(i * 7919 % static_cast<std::size_t>(classes));
  }
  double items() const { return static_cast<double>(n * classes); }
};

/// The other floor of these operations: one exponential per logit, in place.
void exp_only(benchmark::State& state) {
  rows r(state);
  using V = rlhf::math::native_lane<float>;
  constexpr std::size_t step = static_cast<std::size_t>(rlhf::math::width<V>);
  std::vector<float> out(r.logits.size());
  rlhf_bench::measure(state, r.items(), 8, 0, [&] {
    for (std::size_t k = 0; k + step <= out.size(); k += step)
      rlhf::math::store(out.data() + k, rlhf::math::exp(rlhf::math::load<V>(r.logits.data() + k)));
  });
}

void row_reduce_log_prob_entropy(benchmark::State& state) {
  rows r(state);
  rlhf_bench::measure(state, r.items(), 4, 0.75, [&] {
    rlhf::token_log_prob<float>({.logits = {r.logits, {r.n, r.classes}}, .label = r.label},
                                {.log_prob = r.log_prob, .entropy = r.entropy}, {});
  });
}

// Forward and backward in one call, out of place so that every round sees the same logits.
void row_reduce_cross_entropy_gradient(benchmark::State& state) {
  rows r(state);
  std::vector<float> d_logits(r.logits.size());
  rlhf_bench::measure(state, r.items(), 8, 1.0, [&] {
    rlhf::cross_entropy_loss<float>({.logits = {r.logits, {r.n, r.classes}}, .label = r.label},
                                    {.d_logits = {d_logits, {r.n, r.classes}}},
                                    {.over = rlhf::aggregation::token_mean(r.n)});
  });
}

void sizes(benchmark::internal::Benchmark* b) {
  b->Args({64, 32000})->Args({128, 128256})->UseManualTime();
}
BENCHMARK(exp_only)->Apply(sizes);
BENCHMARK(row_reduce_log_prob_entropy)->Apply(sizes);
BENCHMARK(row_reduce_cross_entropy_gradient)->Apply(sizes);

}  // namespace
