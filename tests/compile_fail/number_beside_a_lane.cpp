// expect: rlhf: a lane is no number: in a formula write rlhf::math::exp(x), log, min, ... for std::exp(x), and rlhf::math::constant<V>(2) for 2, with V the type of the lane
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
      [](const auto& t) {
        using V = std::remove_cvref_t<decltype(t.ratio)>;
        return rlhf::math::constant<V>(2) * t.ratio;
      },
      batch, {}, config);
#else
  rlhf::policy_loss<float>([](const auto& t) { return 2 * t.ratio; }, batch, {}, config);
#endif
}
