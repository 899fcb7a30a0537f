#include "rlhf/policy/policy_loss.hpp"

#include "bench/support/tokens.hpp"

namespace {

using namespace rlhf_bench;

// A user's own formula, whose slope comes from dual numbers: the loss of importance sampling.
//
// Bytes: log_prob, old_log_prob, advantage read: 12; d_log_prob written: 4.
const registration lines = token_lines(
    {.family = "policy", .name = "policy_loss", .read = 12, .write = 4}, [](token_data& d) {
      const auto log_prob = d.input("log_prob", -3, 0);
      const auto old_log_prob = d.input_near("old_log_prob", log_prob, 0.2f);
      const auto advantage = d.input("advantage", -1, 1);
      const auto d_log_prob = d.output("d_log_prob");
      return [=, mask = d.mask, layout = d.layout, n = d.counted()](const auto& exec) {
        return rlhf::policy_loss<float>([](const auto& t) { return -(t.ratio * t.advantage); },
                                        {.log_prob = log_prob,
                                         .old_log_prob = old_log_prob,
                                         .advantage = advantage,
                                         .mask = mask,
                                         .layout = layout},
                                        {.d_log_prob = d_log_prob},
                                        {.over = rlhf::aggregation::token_mean(n)}, exec);
      };
    });

}  // namespace
