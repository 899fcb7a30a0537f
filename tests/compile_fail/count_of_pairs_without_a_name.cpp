// expect: rlhf: say what is counted: .over = reduction::mean(n)
#include "rlhf/backend/host.hpp"
#include "rlhf/reward/bradley_terry.hpp"

void wrong() {
  const float chosen[2] = {}, rejected[2] = {};
  float d_chosen[2] = {};
#if defined(RLHF_CONTROL)
  rlhf::bradley_terry_loss<float>({.chosen_reward = chosen, .rejected_reward = rejected},
                                  {.d_chosen_reward = d_chosen},
                                  {.over = rlhf::reduction::mean(2)});
#else
  rlhf::bradley_terry_loss<float>({.chosen_reward = chosen, .rejected_reward = rejected},
                                  {.d_chosen_reward = d_chosen}, {.over = 2});
#endif
}
