// expect: use std::vector<std::uint8_t>
#include <cstdint>
#include <vector>

#include "rlhf/backend/host.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"

void wrong() {
  float log_prob[2][3] = {}, old_log_prob[2][3] = {}, advantage[2] = {}, d_log_prob[2][3] = {};
  const std::vector<std::uint8_t> byte(6);
  const std::vector<bool> bit(6);
#if defined(RLHF_CONTROL)
  rlhf::clipped_surrogate_loss<float>({.log_prob = log_prob,
                                       .old_log_prob = old_log_prob,
                                       .advantage = advantage,
                                       .mask = {byte, {2, 3}}},
                                      {.d_log_prob = d_log_prob},
                                      {.over = rlhf::aggregation::token_mean(rlhf::local)});
#else
  rlhf::clipped_surrogate_loss<float>({.log_prob = log_prob,
                                       .old_log_prob = old_log_prob,
                                       .advantage = advantage,
                                       .mask = {bit, {2, 3}}},
                                      {.d_log_prob = d_log_prob},
                                      {.over = rlhf::aggregation::token_mean(rlhf::local)});
#endif
}
