#include "rlhf/distribution/cross_entropy.hpp"

#include "bench/support/logits.hpp"

namespace {

using namespace rlhf_bench;

// Forward and backward in one call; the gradient overwrites the logits.
//
// Bytes: the logits read once, the gradient written.
const registration lines =
    logit_lines({.family = "distribution",
                 .name = "cross_entropy",
                 .reads = 1,
                 .writes = 1,
                 .goal = 1.0,
                 .growth = true},
                []<class L>(logit_data<L>& d) {
                  const auto in_place = d.logits_to_overwrite();
                  return [=, label = d.label, n = d.rows()](const auto& exec) {
                    return rlhf::cross_entropy_loss<L>(
                        {.logits = in_place, .label = label}, {.d_logits = in_place},
                        {.over = rlhf::aggregation::token_mean(n)}, exec);
                  };
                });

}  // namespace
