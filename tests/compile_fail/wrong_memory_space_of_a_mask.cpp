// expect: rlhf: the tensor is in another memory space than the executor
#include "rlhf/backend/host.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"

void wrong() {
  float log_prob[2][3] = {}, old_log_prob[2][3] = {}, advantage[2] = {}, d_log_prob[2][3] = {};
#if defined(RLHF_CONTROL)
  const rlhf::view<float> host(&log_prob[0][0], {2, 3});
  rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob, .old_log_prob = old_log_prob, .advantage = advantage, .mask = host},
      {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(rlhf::local)});
#else
  const rlhf::view<float, rlhf::device_space> device(&log_prob[0][0], {2, 3});
  rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob, .old_log_prob = old_log_prob, .advantage = advantage, .mask = device},
      {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(rlhf::local)});
#endif
}
