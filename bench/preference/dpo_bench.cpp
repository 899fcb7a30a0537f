#include "rlhf/preference/dpo.hpp"

#include "bench/support/measure.hpp"
#include "rlhf/backend/host.hpp"

namespace {

// Bytes per pair: four log-probs read, two gradients written.
void map_reduce_dpo_pairs(benchmark::State& state) {
  const std::ptrdiff_t n = state.range(0);
  const auto chosen = rlhf_bench::uniform(n, -50, -10), rejected = rlhf_bench::uniform(n, -50, -10);
  const auto ref_chosen = rlhf_bench::uniform(n, -50, -10);
  const auto ref_rejected = rlhf_bench::uniform(n, -50, -10);
  std::vector<float> d_chosen(chosen.size()), d_rejected(chosen.size());
  rlhf_bench::measure(state, static_cast<double>(n), 24, n <= 8 ? 37 : 5, [&] {
    rlhf::dpo_loss<float>({.chosen_log_prob = chosen,
                           .rejected_log_prob = rejected,
                           .ref_chosen_log_prob = ref_chosen,
                           .ref_rejected_log_prob = ref_rejected},
                          {.d_chosen_log_prob = d_chosen, .d_rejected_log_prob = d_rejected},
                          {.over = rlhf::reduction::mean(n)});
  });
}
BENCHMARK(map_reduce_dpo_pairs)->Arg(8)->Arg(256)->Arg(65536)->UseManualTime();

}  // namespace
