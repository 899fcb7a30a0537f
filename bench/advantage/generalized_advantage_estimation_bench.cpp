#include "rlhf/advantage/generalized_advantage_estimation.hpp"

#include "bench/support/tokens.hpp"

namespace {

using namespace rlhf_bench;

target goal(const token_case& of) {
  const index tokens = of.rows * of.columns;
  if (of.layout == token_layout::lengths) {
    if (of.columns == 16) return {.ns = 1.2};
    const bool named = of.columns == 1024 || of.rows == 512 || of.rows == 1;
    return {.ns = named ? 0.75 : 0};
  }
  if (of.layout == token_layout::mask) return {.ns = tokens <= 1 << 16 ? 1.1 : 1.7};
  return {};
}

// Bytes: reward and value read: 8; advantage and returns written: 8.
const registration lines = token_lines(
    {.family = "advantage",
     .name = "generalized_advantage_estimation",
     .read = 8,
     .write = 8,
     .goal = goal,
     .scan = true,
     .growth = true},
    [](token_data& d) {
      const auto reward = d.input("reward", -1, 1);
      const auto value = d.input("value", -1, 1);
      const auto advantage = d.output("advantage");
      const auto returns = d.output("returns");
      return [=, mask = d.mask, layout = d.layout](const auto& exec) {
        return rlhf::generalized_advantage_estimation<float>(
            {.reward = reward, .value = value, .mask = mask, .layout = layout},
            {.advantage = advantage, .returns = returns}, {.gamma = 0.99, .lambda = 0.95}, exec);
      };
    });

}  // namespace
