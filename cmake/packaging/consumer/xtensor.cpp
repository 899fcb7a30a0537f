#include <rlhf/backend/xtensor.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>

#include "batch.hpp"

namespace {

template <class T>
xt::xtensor<T, 1> tensor(const T (&values)[3]) {
  return {values[0], values[1], values[2]};
}

}  // namespace

int main() {
  const auto log_prob = tensor(log_prob_of), old_log_prob = tensor(old_log_prob_of),
             advantage = tensor(advantage_of);
  const auto ends = tensor(ends_of);
  auto d_log_prob = tensor(advantage_of);
  const auto r = rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob,
       .old_log_prob = old_log_prob,
       .advantage = advantage,
       .layout = rlhf::packed(ends)},
      {.d_log_prob = d_log_prob},
      {.clip_low = 0.2, .clip_high = 0.28, .over = rlhf::aggregation::token_mean(rlhf::local)});
  return verdict("xtensor", r.loss, d_log_prob(2));
}
