// expect: rlhf: include a backend beside the algorithm
#include "rlhf/policy/clipped_surrogate.hpp"

void wrong() {
  float log_prob[2][3] = {}, old_log_prob[2][3] = {}, advantage[2] = {}, d_log_prob[2][3] = {};
  rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob, .old_log_prob = old_log_prob, .advantage = advantage},
      {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(rlhf::local)});
}
