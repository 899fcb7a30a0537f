// Strict mode: the last bits of a result, the same for every compiler and instruction set.

//! [strict]
#define RLHF_STRICT  // before the first include, or on the command line
#include <rlhf/advantage/generalized_advantage_estimation.hpp>
#include <rlhf/backend/host.hpp>
//! [strict]
#include <rlhf/reward/ensemble.hpp>

#include <cstdio>
#include <vector>

int main() {
  // Numbers from integers, so that they are the same everywhere.
  const rlhf::index rows = 100, columns = 37;
  std::vector<float> reward, value, advantage(rows * columns);
  unsigned state = 1;
  const auto drawn = [&] {
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(state >> 16) * 0x1p-16f;
  };
  for (rlhf::index k = 0; k < rows * columns; ++k) {
    reward.push_back(drawn() - 0.5f);
    value.push_back(drawn());
  }
  const rlhf::shape tokens(rows, columns);
  const auto r = rlhf::generalized_advantage_estimation<float>(
      {.reward = {reward, tokens}, .value = {value, tokens}}, {.advantage = {advantage, tokens}},
      {.gamma = 0.99, .lambda = 0.95});
  std::printf("first advantage %a\nmean %a\nvariance %a\n", static_cast<double>(advantage[0]),
              r.advantage.mean, r.advantage.variance());
  // The first of them as the scores of five reward models.
  const auto e = rlhf::ensemble_reward<float>(
      {.reward = {reward.data(), {5, rows}}}, {},
      {.combine = rlhf::ensemble::uncertainty_weighted, .coefficient = 0.3});
  std::printf("sum of an ensemble's rewards %a\n", e.combined.sum);
}
