// expect: rlhf: a comparison of lanes is no bool: in a formula write rlhf::math::select(condition, a, b) for if and ?:, and &, | for &&, ||
// flags: -URLHF_NO_SIMD
// A lane of one number compares to a bool.
#include "rlhf/backend/host.hpp"
#include "rlhf/statistics/pair_loss.hpp"

void wrong() {
  const float score[2] = {};
  const rlhf::pair_batch<float> batch{.chosen_score = score, .rejected_score = score};
  const rlhf::pair_config config{.over = rlhf::reduction::sum()};
#if defined(RLHF_CONTROL)
  rlhf::pair_loss<float>(
      [](const auto& p) { return rlhf::math::select(p.chosen > p.rejected, p.rejected, p.chosen); },
      batch, {}, config);
#else
  rlhf::pair_loss<float>(
      [](const auto& p) { return p.chosen > p.rejected ? p.rejected : p.chosen; }, batch, {},
      config);
#endif
}
