// One of two units that include the single header and nothing else of ours.
// Both call the same loss, so the linker has to choose among their copies.
#include <rlhf/rlhf.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

double loss_in_second_unit(const std::vector<float>& log_prob,
                           const std::vector<float>& old_log_prob,
                           const std::vector<float>& advantage);

namespace {

bool near(const char* what, double value, double expected) {
  const bool ok = std::fabs(value - expected) < 1e-6;
  std::printf("%-12s %.7f%s\n", what, value, ok ? "" : ", which is wrong");
  return ok;
}

}  // namespace

int main() {
  const std::vector<float> log_prob{-1.0F, -0.5F, -2.0F};
  const std::vector<float> old_log_prob{-1.2F, -0.5F, -1.5F};
  const std::vector<float> advantage{1.0F, -1.0F, 0.5F};
  const std::vector<int> ends{0, 2, 3};
  std::vector<float> d_log_prob(3);
  const auto policy = rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob,
       .old_log_prob = old_log_prob,
       .advantage = advantage,
       .layout = rlhf::packed(ends)},
      {.d_log_prob = d_log_prob},
      {.clip_low = 0.2, .clip_high = 0.28, .over = rlhf::aggregation::token_mean(rlhf::local)});

  // Ratios e^0.2, 1, e^-0.5; none is cut.
  const double expected = (-std::exp(0.2) + 1 - 0.5 * std::exp(-0.5)) / 3;
  bool ok = near("policy loss", policy.loss, expected);
  ok = near("its slope", static_cast<double>(d_log_prob[2]), -0.5 * std::exp(-0.5) / 3) && ok;
  ok = near("second unit", loss_in_second_unit(log_prob, old_log_prob, advantage), expected) && ok;

  // gamma 0.5: 1 + 0.5 (2 + 0.5 * 4) = 3
  const std::vector<double> reward{1, 2, 4};
  const std::vector<int> whole{0, 3};
  std::vector<double> returns(3);
  (void)rlhf::discounted_returns<double>({.reward = reward, .layout = rlhf::packed(whole)},
                                         {.returns = returns}, {.gamma = 0.5});
  ok = near("returns", returns[0], 3) && ok;
  return ok ? 0 : 1;
}
