// expect: bfloat16
// 16 bits store logits, log-probs are float or double.
#include "rlhf/backend/host.hpp"
#include "rlhf/math/storage.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"

void wrong() {
  float log_prob[2][3] = {}, old_log_prob[2][3] = {}, advantage[2] = {}, d_log_prob[2][3] = {};
#if defined(RLHF_CONTROL)
  rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob, .old_log_prob = old_log_prob, .advantage = advantage},
      {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(rlhf::local)});
#else
  rlhf::bfloat16 narrow[2][3] = {};
  rlhf::clipped_surrogate_loss<rlhf::bfloat16>(
      {.log_prob = narrow, .old_log_prob = old_log_prob, .advantage = advantage},
      {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(rlhf::local)});
#endif
}
