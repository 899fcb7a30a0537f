#include "rlhf/distribution/policy_from_logits.hpp"

#include "bench/support/logits.hpp"

namespace {

using namespace rlhf_bench;

// Log-prob, entropy, the clipped surrogate with an entropy term, and the gradient of the logits in
// one call; it overwrites the logits.
//
// Bytes: the logits read once, the gradient written.
const registration lines = logit_lines(
    {.family = "distribution", .name = "policy_from_logits", .reads = 1, .writes = 1, .goal = 1.0},
    []<class L>(logit_data<L>& d) {
      const auto old_log_prob = d.input("old_log_prob", -16, -4);
      const auto advantage = d.input("advantage", -1, 1);
      const auto log_prob = d.output("log_prob");
      const auto entropy = d.output("entropy");
      const auto in_place = d.logits_to_overwrite();
      return [=, label = d.label, n = d.rows()](const auto& exec) {
        return rlhf::clipped_surrogate_from_logits<L>(
            {.logits = in_place,
             .label = label,
             .old_log_prob = old_log_prob,
             .advantage = advantage},
            {.d_logits = in_place, .log_prob = log_prob, .entropy = entropy},
            {.over = rlhf::aggregation::token_mean(n), .entropy = {.coefficient = 0.01}}, exec);
      };
    });

}  // namespace
