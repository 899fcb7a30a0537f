// expect: rlhf: say what divides the loss: .over = reduction::mean(global_pairs), or (rlhf::local)
#include "rlhf/backend/host.hpp"
#include "rlhf/reward/bradley_terry.hpp"

void wrong() {
  float chosen[2] = {}, rejected[2] = {};
#if defined(RLHF_CONTROL)
  rlhf::bradley_terry_loss<float>({.chosen_reward = chosen, .rejected_reward = rejected}, {},
                                  {.over = rlhf::reduction::mean(rlhf::local)});
#else
  rlhf::bradley_terry_loss<float>({.chosen_reward = chosen, .rejected_reward = rejected}, {}, {});
#endif
}
