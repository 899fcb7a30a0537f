#include "rlhf/distribution/token_log_prob.hpp"

#include "bench/support/logits.hpp"

namespace {

using namespace rlhf_bench;

// Bytes: the logits read once. A log-prob per row is nothing beside them.
const registration forward = logit_lines(
    {.family = "distribution", .name = "token_log_prob", .reads = 1, .writes = 0, .goal = 0.75},
    []<class L>(logit_data<L>& d) {
      const auto log_prob = d.output("log_prob");
      return [=, logits = d.logits(), label = d.label](const auto& exec) {
        return rlhf::token_log_prob<L>({.logits = logits, .label = label}, {.log_prob = log_prob},
                                       {}, exec);
      };
    });

// Bytes: the logits read once.
const registration with_entropy = logit_lines(
    {.family = "distribution",
     .name = "token_log_prob_entropy",
     .reads = 1,
     .writes = 0,
     .goal = 0.75,
     .growth = true},
    []<class L>(logit_data<L>& d) {
      const auto log_prob = d.output("log_prob");
      const auto entropy = d.output("entropy");
      return [=, logits = d.logits(), label = d.label](const auto& exec) {
        return rlhf::token_log_prob<L>({.logits = logits, .label = label},
                                       {.log_prob = log_prob, .entropy = entropy}, {}, exec);
      };
    });

// Two calls, as where the loss between them is the caller's; the gradient overwrites the logits.
//
// Bytes: the logits read by each call, the gradient written.
const registration backward = logit_lines(
    {.family = "distribution",
     .name = "token_log_prob_forward_backward",
     .reads = 2,
     .writes = 1,
     .goal = 1.0},
    []<class L>(logit_data<L>& d) {
      const auto slope = d.input("d_log_prob", -1, 1);
      const auto entropy_slope = d.input("d_entropy", -0.1f, 0.1f);
      const auto log_prob = d.output("log_prob");
      const auto entropy = d.output("entropy");
      const auto in_place = d.logits_to_overwrite();
      return [=, label = d.label](const auto& exec) {
        rlhf::token_log_prob<L>({.logits = in_place, .label = label},
                                {.log_prob = log_prob, .entropy = entropy}, {}, exec);
        return rlhf::token_log_prob_backward<L>(
            {.logits = in_place, .label = label, .d_log_prob = slope, .d_entropy = entropy_slope},
            {.d_logits = in_place}, {}, exec);
      };
    });

}  // namespace
