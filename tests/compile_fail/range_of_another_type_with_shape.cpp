// expect: rlhf: the element type differs from the scalar of the call, f<scalar>(...)
#include <vector>

#include "rlhf/backend/host.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"

void wrong() {
  float log_prob[2][3] = {}, old_log_prob[2][3] = {}, advantage[2] = {}, d_log_prob[2][3] = {};
  const std::vector<double> wide(6);
  const std::vector<float> right(6);
  static_cast<void>(wide);
  static_cast<void>(log_prob);
#if defined(RLHF_CONTROL)
  rlhf::clipped_surrogate_loss<float>(
      {.log_prob = {right, {2, 3}}, .old_log_prob = old_log_prob, .advantage = advantage},
      {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(rlhf::local)});
#else
  rlhf::clipped_surrogate_loss<float>(
      {.log_prob = {wide, {2, 3}}, .old_log_prob = old_log_prob, .advantage = advantage},
      {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(rlhf::local)});
#endif
}
