// expect: rlhf: a temporary that owns its memory would dangle; name it first
#include <vector>

#include "rlhf/backend/host.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"

void wrong() {
  float log_prob[2][3] = {}, old_log_prob[2][3] = {}, advantage[2] = {}, d_log_prob[2][3] = {};
  const std::vector<float> made(6);
  static_cast<void>(log_prob);
#if defined(RLHF_CONTROL)
  rlhf::clipped_surrogate_loss<float>(
      {.log_prob = {made, {2, 3}}, .old_log_prob = old_log_prob, .advantage = advantage},
      {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(rlhf::local)});
#else
  rlhf::clipped_surrogate_loss<float>({.log_prob = {std::vector<float>(6), {2, 3}},
                                       .old_log_prob = old_log_prob,
                                       .advantage = advantage},
                                      {.d_log_prob = d_log_prob},
                                      {.over = rlhf::aggregation::token_mean(rlhf::local)});
#endif
}
