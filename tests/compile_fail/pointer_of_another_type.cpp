// expect: rlhf: the element type differs from the scalar of the call, f<scalar>(...)
#include "rlhf/backend/host.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"

void wrong() {
  float log_prob[2][3] = {}, old_log_prob[2][3] = {}, advantage[2] = {}, d_log_prob[2][3] = {};
  double wide[2][3] = {};
  double* const p = &wide[0][0];
  static_cast<void>(p);
#if defined(RLHF_CONTROL)
  rlhf::clipped_surrogate_loss<float>(
      {.log_prob = {&log_prob[0][0], {2, 3}}, .old_log_prob = old_log_prob, .advantage = advantage},
      {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(rlhf::local)});
#else
  rlhf::clipped_surrogate_loss<float>(
      {.log_prob = {p, {2, 3}}, .old_log_prob = old_log_prob, .advantage = advantage},
      {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(rlhf::local)});
#endif
}
