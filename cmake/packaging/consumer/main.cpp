// A user's first program, built against every way in which the library is delivered.
#include <rlhf/backend/eigen.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>

#include <Eigen/Core>

#include <cstdio>

int main() {
  using matrix = Eigen::Array<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const matrix log_prob{{-1.0F, -0.5F}, {-2.0F, -1.0F}};
  const matrix old_log_prob{{-1.2F, -0.5F}, {-1.5F, -1.0F}};
  const matrix advantage{{1.0F, -1.0F}, {0.5F, 2.0F}};
  const matrix mask{{1.0F, 1.0F}, {1.0F, 0.0F}};
  matrix d_log_prob(2, 2);

  const auto r = rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob, .old_log_prob = old_log_prob, .advantage = advantage, .mask = mask},
      {.d_log_prob = d_log_prob},
      {.clip_low = 0.2, .clip_high = 0.28, .over = rlhf::aggregation::token_mean(rlhf::local)});

  // Ratios e^0.2, 1, e^-0.5: (-e^0.2 + 1 - 0.5 e^-0.5) / 3 = -0.1748894, the last token is masked.
  std::printf("loss %.4f\n", r.loss);
  return r.loss > -0.1750 && r.loss < -0.1748 && d_log_prob(1, 1) == 0.0F ? 0 : 1;
}
