// A reward model finds hidden rewards from comparisons. Four answers are compared two at a time; of
// each pair we know how often the first one won. Only differences of rewards can be known, so the
// centering term picks the ones around 0.

#include <rlhf/backend/host.hpp>
#include <rlhf/reward/bradley_terry.hpp>

#include <cmath>
#include <cstdio>

int main() {
  constexpr int answers = 4, pairs = 6;
  const double hidden[answers] = {1.5, 0.5, -0.5, -1.5};
  const int first[pairs] = {0, 0, 0, 1, 1, 2};
  const int second[pairs] = {1, 2, 3, 2, 3, 3};
  double wins[pairs];
  for (int k = 0; k < pairs; ++k)
    wins[k] = 1 / (1 + std::exp(hidden[second[k]] - hidden[first[k]]));

  double reward[answers] = {0, 0, 0, 0};
  for (int step = 0; step <= 45; ++step) {
    double chosen[pairs], rejected[pairs], d_chosen[pairs], d_rejected[pairs];
    for (int k = 0; k < pairs; ++k) {
      chosen[k] = reward[first[k]];
      rejected[k] = reward[second[k]];
    }
    const auto r = rlhf::bradley_terry_loss<double>(
        {.chosen_reward = chosen, .rejected_reward = rejected, .target = wins},
        {.d_chosen_reward = d_chosen, .d_rejected_reward = d_rejected},
        {.centering = 1e-4, .over = rlhf::reduction::mean(pairs)});
    if (step % 15 == 0)
      std::printf("step %2d  loss %.4f  accuracy %.2f  rewards %6.3f %6.3f %6.3f %6.3f\n", step,
                  r.loss, r.accuracy.mean(), reward[0], reward[1], reward[2], reward[3]);

    for (int k = 0; k < pairs; ++k) {
      reward[first[k]] -= 2 * d_chosen[k];
      reward[second[k]] -= 2 * d_rejected[k];
    }
  }
  std::printf("hidden                             rewards %6.3f %6.3f %6.3f %6.3f\n", hidden[0],
              hidden[1], hidden[2], hidden[3]);
}
