// expect: rlhf: a formula returns the loss as a lane, or policy_terms<V> or pair_terms<V>: write rlhf::math::constant<V>(x) for a number x
#include <type_traits>
#include "rlhf/backend/host.hpp"

#include "rlhf/policy/policy_loss.hpp"

void wrong() {
  const float log_prob[2][3] = {}, advantage[2] = {};
  const rlhf::policy_batch<float> batch{
      .log_prob = log_prob, .old_log_prob = log_prob, .advantage = advantage};
  const rlhf::policy_config config{.over = rlhf::aggregation::token_sum()};
#if defined(RLHF_CONTROL)
  rlhf::policy_loss<float>(
      [](const auto& t) { return rlhf::math::constant<std::remove_cvref_t<decltype(t.ratio)>>(1); },
      batch, {}, config);
#else
  rlhf::policy_loss<float>(
      [](const auto& t) {
        static_cast<void>(t);
        return 1.0;
      },
      batch, {}, config);
#endif
}
