// expect: rlhf: a formula returns the loss as a lane, or policy_terms<V> or pair_terms<V>: write rlhf::math::constant<V>(x) for a number x
#include "rlhf/backend/host.hpp"
#include "rlhf/statistics/pair_loss.hpp"

void wrong() {
  const float score[2] = {};
  const rlhf::pair_batch<float> batch{.chosen_score = score, .rejected_score = score};
  const rlhf::pair_config config{.over = rlhf::reduction::sum()};
#if defined(RLHF_CONTROL)
  rlhf::pair_loss<float>([](const auto& p) { return p.rejected - p.chosen; }, batch, {}, config);
#else
  rlhf::pair_loss<float>(
      [](const auto& p) {
        static_cast<void>(p);
        return 1.0f;
      },
      batch, {}, config);
#endif
}
