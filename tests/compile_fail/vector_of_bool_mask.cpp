// expect: use std::vector<std::uint8_t>
#include <cstdint>
#include <vector>

#include "rlhf/backend/host.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"

void wrong() {
  float log_prob[2][3] = {}, old_log_prob[2][3] = {}, advantage[2] = {}, d_log_prob[2][3] = {};
#if defined(RLHF_CONTROL)
  const std::vector<std::uint8_t> mask(6);
  rlhf::clipped_surrogate_loss<float>({.log_prob = log_prob,
                                       .old_log_prob = old_log_prob,
                                       .advantage = advantage,
                                       .mask = {mask, {2, 3}}},
                                      {.d_log_prob = d_log_prob},
                                      {.over = rlhf::aggregation::token_mean(rlhf::local)});
#else
  const std::vector<bool> mask(6);
  rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob, .old_log_prob = old_log_prob, .advantage = advantage, .mask = mask},
      {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(rlhf::local)});
#endif
}
