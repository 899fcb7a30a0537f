// The call on the first screen of the README, with what it prints.

#include <rlhf/backend/eigen.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>

#include <cstdio>

int main() {
  // Two answers of up to three tokens; the second one has two.
  Eigen::ArrayXXf log_prob(2, 3), old_log_prob(2, 3);
  log_prob << -1.0f, -0.7f, -2.0f, -0.9f, -1.1f, 0.0f;
  old_log_prob << -1.2f, -1.1f, -2.0f, -0.5f, -1.0f, 0.0f;
  const Eigen::Array2f advantage(1.0f, -0.5f);  // one per answer
  const Eigen::Array2i length(3, 2);
  Eigen::ArrayXXf d_log_prob(2, 3);

  const auto r = rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob,
       .old_log_prob = old_log_prob,
       .advantage = advantage,
       .layout = rlhf::lengths(length)},
      {.d_log_prob = d_log_prob},
      {.clip_low = 0.2, .clip_high = 0.28, .over = rlhf::aggregation::token_mean(rlhf::local)});

  std::printf("loss %.4f  clip fraction %.2f  KL(old || new) %.4f  tokens %g\n", r.loss,
              r.clip_fraction.mean(), r.approx_kl_k3.mean(), r.tokens);
  for (int i = 0; i < 2; ++i)
    std::printf("d_log_prob  %7.4f %7.4f %7.4f\n", static_cast<double>(d_log_prob(i, 0)),
                static_cast<double>(d_log_prob(i, 1)), static_cast<double>(d_log_prob(i, 2)));
}
