#include "rlhf/policy/sequence_clipped_surrogate.hpp"

#include "bench/support/tokens.hpp"

namespace {

using namespace rlhf_bench;

// Bytes: log_prob and old_log_prob read, for the ratio of the sequence: 8; d_log_prob written: 4.
// The advantage is one number per sequence.
const registration lines =
    token_lines({.family = "policy", .name = "sequence_clipped_surrogate", .read = 8, .write = 4},
                [](token_data& d) {
                  const auto log_prob = d.input("log_prob", -3, 0);
                  const auto old_log_prob = d.input_near("old_log_prob", log_prob, 0.2f);
                  const auto advantage = d.row_input("advantage", -1, 1);
                  const auto d_log_prob = d.output("d_log_prob");
                  return [=, mask = d.mask, layout = d.layout](const auto& exec) {
                    return rlhf::sequence_clipped_surrogate_loss<float>(
                        {.log_prob = log_prob,
                         .old_log_prob = old_log_prob,
                         .advantage = rlhf::per_sequence(advantage),
                         .mask = mask,
                         .layout = layout},
                        {.d_log_prob = d_log_prob},
                        {.over = rlhf::aggregation::sequence_mean_token_mean(rlhf::local)}, exec);
                  };
                });

}  // namespace
