#include <rlhf/backend/eigen.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>

#include <Eigen/Core>

#include "batch.hpp"

int main() {
  const Eigen::Map<const Eigen::Array3f> log_prob(log_prob_of), old_log_prob(old_log_prob_of),
      advantage(advantage_of);
  const Eigen::Map<const Eigen::Array3i> ends(ends_of);
  Eigen::Array3f d_log_prob;
  const auto r = rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob,
       .old_log_prob = old_log_prob,
       .advantage = advantage,
       .layout = rlhf::packed(ends)},
      {.d_log_prob = d_log_prob},
      {.clip_low = 0.2, .clip_high = 0.28, .over = rlhf::aggregation::token_mean(rlhf::local)});
  return verdict("eigen", r.loss, d_log_prob(2));
}
