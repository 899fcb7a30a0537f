#include <rlhf/backend/tbb.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>

#include "batch.hpp"

int main() {
  const rlhf::tbb_pool pool;
  float d_log_prob[3] = {};
  const auto r = rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob_of,
       .old_log_prob = old_log_prob_of,
       .advantage = advantage_of,
       .layout = rlhf::packed(ends_of)},
      {.d_log_prob = d_log_prob},
      {.clip_low = 0.2, .clip_high = 0.28, .over = rlhf::aggregation::token_mean(rlhf::local)},
      rlhf::parallel{pool});
  return verdict("tbb", r.loss, d_log_prob[2]);
}
