// expect: rlhf: a lane is no number: in a formula write rlhf::math::exp(x), log, min, ... for std::exp(x), and rlhf::math::constant<V>(2) for 2, with V the type of the lane
#include <cmath>
#include "rlhf/backend/host.hpp"

#include "rlhf/policy/policy_loss.hpp"

void wrong() {
  const float log_prob[2][3] = {}, advantage[2] = {};
  const rlhf::policy_batch<float> batch{
      .log_prob = log_prob, .old_log_prob = log_prob, .advantage = advantage};
  const rlhf::policy_config config{.over = rlhf::aggregation::token_sum()};
#if defined(RLHF_CONTROL)
  rlhf::policy_loss<float>(
      [](const auto& t) { return -(rlhf::math::exp(t.log_ratio) * t.advantage); }, batch, {},
      config);
#else
  rlhf::policy_loss<float>([](const auto& t) { return -(std::exp(t.log_ratio) * t.advantage); },
                           batch, {}, config);
#endif
}
