// expect: rlhf: a comparison of lanes is no bool: in a formula write rlhf::math::select(condition, a, b) for if and ?:, and &, | for &&, ||
// flags: -URLHF_NO_SIMD
// A lane of one number compares to a bool.
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
        return -rlhf::math::select(t.ratio > t.advantage, t.ratio, t.advantage);
      },
      batch, {}, config);
#else
  rlhf::policy_loss<float>(
      [](const auto& t) {
        if (t.ratio > t.advantage) return -t.ratio;
        return -t.advantage;
      },
      batch, {}, config);
#endif
}
