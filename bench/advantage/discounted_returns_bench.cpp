#include "rlhf/advantage/discounted_returns.hpp"

#include "bench/support/tokens.hpp"

namespace {

using namespace rlhf_bench;

// Bytes: reward read: 4; returns written: 4.
const registration lines = token_lines(
    {.family = "advantage", .name = "discounted_returns", .read = 4, .write = 4, .scan = true},
    [](token_data& d) {
      const auto reward = d.input("reward", -1, 1);
      const auto returns = d.output("returns");
      return [=, mask = d.mask, layout = d.layout](const auto& exec) {
        return rlhf::discounted_returns<float>({.reward = reward, .mask = mask, .layout = layout},
                                               {.returns = returns}, {.gamma = 0.99}, exec);
      };
    });

}  // namespace
