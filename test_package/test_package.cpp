// No tensor library: plain vectors.
#include <rlhf/backend/host.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>
#include <rlhf/version.hpp>

#include <cstdio>
#include <vector>

int main() {
  const std::vector<float> log_prob{-1.0F, -0.5F, -2.0F};
  const std::vector<float> old_log_prob{-1.2F, -0.5F, -1.5F};
  const std::vector<float> advantage{1.0F, -1.0F, 0.5F};
  const std::vector<int> ends{0, 2, 3};
  std::vector<float> d_log_prob(3);

  const auto r = rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob,
       .old_log_prob = old_log_prob,
       .advantage = advantage,
       .layout = rlhf::packed(ends)},
      {.d_log_prob = d_log_prob},
      {.clip_low = 0.2, .clip_high = 0.28, .over = rlhf::aggregation::token_mean(rlhf::local)});

  // (-e^0.2 + 1 - 0.5 e^-0.5) / 3
  std::printf("rlhf %d.%d.%d: loss %.4f\n", RLHF_VERSION_MAJOR, RLHF_VERSION_MINOR,
              RLHF_VERSION_PATCH, r.loss);
  return r.loss > -0.1750 && r.loss < -0.1748 ? 0 : 1;
}
