// expect: rlhf: say how sequences lie: .layout = rlhf::lengths(x) or rlhf::packed(cu_seqlens)
#include <vector>
#include "rlhf/backend/host.hpp"

#include "rlhf/advantage/discounted_returns.hpp"

void wrong() {
  const float reward[2][3] = {};
  const std::vector<int> length(2);
  float returns[2][3] = {};
#if defined(RLHF_CONTROL)
  rlhf::discounted_returns<float>({.reward = reward, .layout = rlhf::lengths(length)},
                                  {.returns = returns}, {.gamma = 0.9});
#else
  rlhf::discounted_returns<float>({.reward = reward, .layout = length}, {.returns = returns},
                                  {.gamma = 0.9});
#endif
}
