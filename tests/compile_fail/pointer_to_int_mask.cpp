// expect: rlhf: a mask is bool, uint8_t, or float/double weights
#include "rlhf/backend/host.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"

void wrong() {
  float log_prob[2][3] = {}, old_log_prob[2][3] = {}, advantage[2] = {}, d_log_prob[2][3] = {};
  const bool flag[6] = {};
  const int number[6] = {};
  static_cast<void>(number);
#if defined(RLHF_CONTROL)
  rlhf::clipped_surrogate_loss<float>({.log_prob = log_prob,
                                       .old_log_prob = old_log_prob,
                                       .advantage = advantage,
                                       .mask = {&flag[0], {2, 3}, {3, 1}}},
                                      {.d_log_prob = d_log_prob},
                                      {.over = rlhf::aggregation::token_mean(rlhf::local)});
#else
  rlhf::clipped_surrogate_loss<float>({.log_prob = log_prob,
                                       .old_log_prob = old_log_prob,
                                       .advantage = advantage,
                                       .mask = {&number[0], {2, 3}, {3, 1}}},
                                      {.d_log_prob = d_log_prob},
                                      {.over = rlhf::aggregation::token_mean(rlhf::local)});
#endif
}
