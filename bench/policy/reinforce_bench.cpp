#include "rlhf/policy/reinforce.hpp"

#include "bench/support/tokens.hpp"

namespace {

using namespace rlhf_bench;

// Bytes: log_prob, old_log_prob (for the metrics) and advantage read: 12; d_log_prob written: 4.
const registration lines = token_lines(
    {.family = "policy", .name = "reinforce", .read = 12, .write = 4}, [](token_data& d) {
      const auto log_prob = d.input("log_prob", -3, 0);
      const auto old_log_prob = d.input_near("old_log_prob", log_prob, 0.2f);
      const auto advantage = d.input("advantage", -1, 1);
      const auto d_log_prob = d.output("d_log_prob");
      return [=, mask = d.mask, layout = d.layout, n = d.counted()](const auto& exec) {
        return rlhf::reinforce_loss<float>({.log_prob = log_prob,
                                            .old_log_prob = old_log_prob,
                                            .advantage = advantage,
                                            .mask = mask,
                                            .layout = layout},
                                           {.d_log_prob = d_log_prob},
                                           {.over = rlhf::aggregation::token_mean(n)}, exec);
      };
    });

}  // namespace
