// expect: rlhf: a mask is bool, uint8_t, or float/double weights
#include "rlhf/backend/host.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"

void wrong() {
  float log_prob[2][3] = {}, old_log_prob[2][3] = {}, advantage[2] = {}, d_log_prob[2][3] = {};
#if defined(RLHF_CONTROL)
  const bool mask[2][3] = {};
  rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob, .old_log_prob = old_log_prob, .advantage = advantage, .mask = mask},
      {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(rlhf::local)});
#else
  const int mask[2][3] = {};
  rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob, .old_log_prob = old_log_prob, .advantage = advantage, .mask = mask},
      {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(rlhf::local)});
#endif
}
