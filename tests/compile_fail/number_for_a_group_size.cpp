// expect: rlhf: a size of groups is written rlhf::group_size{3}
#include "rlhf/advantage/group_relative_advantage.hpp"
#include "rlhf/backend/host.hpp"

void wrong() {
  const float reward[6] = {};
  float advantage[6] = {};
#if defined(RLHF_CONTROL)
  rlhf::group_relative_advantage<float>({.reward = reward}, {.advantage = advantage},
                                        {.group_size = rlhf::group_size{3}});
#else
  rlhf::group_relative_advantage<float>({.reward = reward}, {.advantage = advantage},
                                        {.group_size = 3});
#endif
}
